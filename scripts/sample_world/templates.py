"""Vertices, faces and normals of the basic forms."""

from functools import lru_cache

import numpy as np


def quad_faces(count: int) -> np.ndarray:
    """Triangles [2 count, 3] of separate quads, four corners each."""
    first = np.arange(0, 4 * count, 4)[:, None]
    return np.concatenate([first + np.array([0, 1, 2]), first + np.array([0, 2, 3])])


def cube_template() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(corners [24 3] of six separate faces in -1..1, faces [12 3], uv [24 2])."""
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float)
    corners = []
    for axis, sign in np.ndindex(3, 2):
        face = np.insert(square, axis, 2 * sign - 1, axis=1)
        # An odd number of mirrorings turns the winding inwards.
        corners.append(face if (sign + axis) % 2 else face[::-1])
    corners = np.concatenate(corners)
    faces = quad_faces(6)
    # Along the two axes of each face, the upright one as v.
    axes = np.repeat([[1, 2], [0, 2], [0, 1]], 8, axis=0)
    return corners, faces, np.take_along_axis(corners, axes, 1) * 0.5 + 0.5


CUBE, CUBE_FACES, CUBE_UV = cube_template()


@lru_cache
def grid_faces(rows: int, columns: int) -> np.ndarray:
    """Triangles [m 3] between the points of a grid."""
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    quads = np.stack([corner, corner + 1, corner + columns + 1, corner + columns], -1)
    return np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


@lru_cache
def superellipsoid(roundness: float, rows: int, columns: int) -> np.ndarray:
    """Points [rows columns 3] in -1..1: 0.1 is nearly a box, 1 a sphere."""
    lon, lat = np.meshgrid(np.linspace(-np.pi, np.pi, columns), np.linspace(-np.pi / 2, np.pi / 2, rows))

    def soft(value: np.ndarray) -> np.ndarray:
        # cos(pi / 2) is 6e-17, whose root would open a hole at the pole.
        return np.sign(value) * np.where(np.abs(value) < 1e-9, 0, np.abs(value)) ** roundness

    return np.stack(
        [soft(np.cos(lat)) * soft(np.cos(lon)), soft(np.cos(lat)) * soft(np.sin(lon)), soft(np.sin(lat))], -1
    )


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals [n 3], faces weighted by area; +z where no face has any."""
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    cross = np.cross(b - a, c - a).repeat(3, axis=0)
    total = np.stack([np.bincount(faces.ravel(), cross[:, axis], len(vertices)) for axis in range(3)], -1)
    length = np.linalg.norm(total, axis=-1, keepdims=True)
    return np.where(length > 1e-12, total / np.maximum(length, 1e-12), [0.0, 0.0, 1.0])
