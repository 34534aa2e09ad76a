"""Boxes, balls and free forms placed in nested frames, collected as one Mitsuba scene.

Every frame has x to the right, y ahead and z up, in metres; `yaw_deg` turns counter-clockwise from above. Its
`label` is the class of its shapes in the masks.
All surfaces end up in two meshes (matt and glossy) that share one texture atlas: hundreds of separate
Mitsuba shapes with their own materials are ten times slower to trace.
"""

from dataclasses import dataclass
from typing import Any

import mitsuba as mi
import numpy as np

from .classes import number
from .style import Material
from .templates import (
    CUBE,
    CUBE_FACES,
    CUBE_UV,
    grid_faces,
    quad_faces,
    superellipsoid,
    vertex_normals,
)
from .textures import SIZE

mi.set_variant("scalar_rgb")
# The poles of turned meshes have no normal of their own, which Mitsuba reports for each mesh.
mi.set_log_level(mi.LogLevel.Error)
ATLAS_COLUMNS = 16


def translation(x: float, y: float, z: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = x, y, z
    return matrix


def rotation_z(yaw_deg: float) -> np.ndarray:
    matrix = np.eye(4)
    c, s = np.cos(np.radians(yaw_deg)), np.sin(np.radians(yaw_deg))
    matrix[:2, :2] = [[c, -s], [s, c]]
    return matrix


class Surface:
    """Triangles under way to one mesh; `classes` has one class number per triangle."""

    def __init__(self) -> None:
        self.vertices: list[np.ndarray] = []
        self.faces: list[np.ndarray] = []
        self.uv: list[np.ndarray] = []
        self.classes: list[np.ndarray] = []
        self.count = 0

    def append(self, vertices: np.ndarray, faces: np.ndarray, uv: np.ndarray, label: str) -> None:
        self.vertices.append(vertices)
        self.faces.append(faces + self.count)
        self.uv.append(uv)
        self.classes.append(np.full(len(faces), number(label), np.uint8))
        self.count += len(vertices)

    def mesh(self, bsdf: Any, rows: int) -> Any:
        """`uv` counts atlas cells until here; `rows` is the height of the atlas in cells."""
        props = mi.Properties()
        props["mesh_bsdf"] = bsdf
        faces, uv = np.concatenate(self.faces), np.concatenate(self.uv) / [ATLAS_COLUMNS, rows]
        mesh = mi.Mesh(
            "mesh", self.count, len(faces), has_vertex_normals=True, has_vertex_texcoords=True, props=props
        )
        vertices = np.concatenate(self.vertices)
        params = mi.traverse(mesh)
        params["vertex_positions"] = vertices.astype(np.float32).ravel()
        params["faces"] = faces.astype(np.uint32).ravel()
        params["vertex_texcoords"] = uv.astype(np.float32).ravel()
        params.update()
        # Mitsuba's own normals, set by the update above, are NaN next to the needle triangles at a pole.
        params["vertex_normals"] = vertex_normals(vertices, faces).astype(np.float32).ravel()
        params.update()
        return mesh


@dataclass(frozen=True)
class Scene:
    """`classes` maps the id of a shape to class numbers: [m] of the m faces of a mesh, one of a lamp."""

    mitsuba: Any
    classes: dict[str, Any]


class World:
    """The growing geometry of one scene."""

    def __init__(self) -> None:
        self.matt, self.glossy = Surface(), Surface()
        self.textures: list[np.ndarray] = []
        self.slots: dict[int, int] = {}
        self.lamps: list[dict[str, Any]] = []
        self.lamp_classes: list[int] = []

    def frame(
        self, label: str, x: float = 0.0, y: float = 0.0, z: float = 0.0, yaw_deg: float = 0.0
    ) -> "Frame":
        return Frame(self, translation(x, y, z) @ rotation_z(yaw_deg), label)

    def slot(self, material: Material) -> np.ndarray:
        """(column, row) of the material in the atlas."""
        # Keyed by the texture, which the list below keeps alive, so that no id is used twice.
        if id(material.texture) not in self.slots:
            self.slots[id(material.texture)] = len(self.textures)
            self.textures.append(material.texture)
        row, column = divmod(self.slots[id(material.texture)], ATLAS_COLUMNS)
        return np.array([column, row])

    def put(
        self, vertices: np.ndarray, faces: np.ndarray, uv: np.ndarray, material: Material, label: str
    ) -> None:
        """World vertices [n 3], faces [m 3], uv [n 2] in 0..1 of one tile."""
        surface = self.glossy if material.gloss else self.matt
        inset = 0.75 / SIZE
        surface.append(vertices, faces, self.slot(material) + inset + uv * (1 - 2 * inset), label)

    def atlas(self) -> np.ndarray:
        """uint8 [h w 3], the first material at v = 0."""
        rows = -(-len(self.textures) // ATLAS_COLUMNS)
        sheet = np.zeros((rows, ATLAS_COLUMNS, SIZE, SIZE, 3), np.uint8)
        for i, texture in enumerate(self.textures):
            # Cells run downwards in v but their content upwards.
            sheet[i // ATLAS_COLUMNS, i % ATLAS_COLUMNS] = texture[::-1]
        return sheet.transpose(0, 2, 1, 3, 4).reshape(rows * SIZE, ATLAS_COLUMNS * SIZE, 3)

    def scene(self, extra: dict[str, Any]) -> Scene:
        atlas = self.atlas()
        colour = mi.load_dict(
            {"type": "bitmap", "bitmap": mi.Bitmap(np.ascontiguousarray(atlas)), "wrap_mode": "clamp"}
        )
        gloss = {"type": "principled", "base_color": colour, "roughness": 0.25, "specular": 0.5}
        bsdfs = {"type": "diffuse", "reflectance": colour}, gloss
        shapes = {f"lamp_{i}": lamp for i, lamp in enumerate(self.lamps)}
        classes: dict[str, Any] = {f"lamp_{i}": found for i, found in enumerate(self.lamp_classes)}
        for i, (surface, bsdf) in enumerate(zip((self.matt, self.glossy), bsdfs)):
            if surface.count:
                twosided = mi.load_dict({"type": "twosided", "bsdf": bsdf})
                shapes[f"surface_{i}"] = surface.mesh(twosided, len(atlas) // SIZE)
                classes[f"surface_{i}"] = np.concatenate(surface.classes)
        return Scene(mi.load_dict({"type": "scene", **shapes, **extra}, parallel=False), classes)


class Frame:
    """A place in the world that shapes are given relative to."""

    def __init__(self, world: World, to_world: np.ndarray, label: str) -> None:
        self.world = world
        self.to_world = to_world
        self.label = label

    def at(self, x: float, y: float, z: float = 0.0, yaw_deg: float = 0.0) -> "Frame":
        return Frame(self.world, self.to_world @ translation(x, y, z) @ rotation_z(yaw_deg), self.label)

    def of(self, label: str) -> "Frame":
        """The same place for shapes of another class."""
        return Frame(self.world, self.to_world, label)

    def put(self, vertices: np.ndarray, faces: np.ndarray, uv: np.ndarray, material: Material) -> None:
        placed = vertices @ self.to_world[:3, :3].T + self.to_world[:3, 3]
        self.world.put(placed, faces, uv, material, self.label)

    def lamp(self, kind: str, local: np.ndarray, material: Material) -> None:
        """A Mitsuba primitive that shines in the colours of the material's texture times `emission`."""
        linear = (material.texture / 255.0).astype(np.float32) ** 2.2 * material.emission
        radiance = {"type": "bitmap", "bitmap": mi.Bitmap(linear), "raw": True}
        self.world.lamp_classes.append(number(self.label))
        self.world.lamps.append(
            {
                "type": kind,
                "to_world": mi.ScalarTransform4f(self.to_world @ local),
                "emitter": {"type": "area", "radiance": radiance},
            }
        )

    def plane(self, origin: np.ndarray, along_u: np.ndarray, along_v: np.ndarray, material: Material) -> None:
        """Parallelogram of whole texture tiles and a rest, since an atlas cannot repeat by itself."""
        spans = [max(float(np.linalg.norm(edge)) / material.tile_m, 1e-3) for edge in (along_u, along_v)]
        cuts = [np.append(np.arange(np.ceil(span)), span) for span in spans]
        starts = np.stack(np.meshgrid(cuts[0][:-1], cuts[1][:-1]), -1).reshape(-1, 1, 2)
        sizes = np.stack(np.meshgrid(np.diff(cuts[0]), np.diff(cuts[1])), -1).reshape(-1, 1, 2)
        uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * sizes
        place = (starts + uv) / spans
        vertices = origin + place[..., :1] * along_u + place[..., 1:] * along_v
        self.put(vertices.reshape(-1, 3), quad_faces(len(starts)), uv.reshape(-1, 2), material)

    def box(
        self, center: tuple[float, float, float], size: tuple[float, float, float], material: Material
    ) -> None:
        half = np.asarray(size) / 2
        if max(size) <= 2 * material.tile_m:
            self.put(CUBE * half + np.asarray(center), CUBE_FACES, CUBE_UV, material)
            return
        for axis in range(3):
            u, v = (np.eye(3)[other] * size[other] for other in ((1, 2), (0, 2), (0, 1))[axis])
            for sign in (-1, 1):
                middle = np.asarray(center) + sign * half[axis] * np.eye(3)[axis]
                self.plane(middle - u / 2 - v / 2, u, v, material)

    def ball(self, center: tuple[float, float, float], radius: float, material: Material) -> None:
        if material.emission:
            self.lamp("sphere", translation(*center) @ np.diag([radius, radius, radius, 1]), material)
        else:
            self.sheet(np.asarray(center) + radius * superellipsoid(1.0, 13, 21), material)

    def pole(
        self, base: tuple[float, float, float], radius: float, height: float, material: Material
    ) -> None:
        """Upright cylinder, closed above."""
        self.at(*base).lathe([(radius, 0), (radius, height), (radius, height), (0, height)], material, 10)

    def slab(self, center: tuple[float, float, float], size: tuple[float, float], material: Material) -> None:
        """Horizontal rectangle."""
        origin = np.asarray(center) - [size[0] / 2, size[1] / 2, 0]
        self.plane(origin, np.array([size[0], 0, 0]), np.array([0, size[1], 0]), material)

    def pane(self, center: tuple[float, float, float], size: tuple[float, float], material: Material) -> None:
        """Upright rectangle (width, height) across y; shines to -y if the material is a lamp."""
        if material.emission:
            turn = np.eye(4)
            turn[:3, :3] = [[1, 0, 0], [0, 0, -1], [0, 1, 0]]
            self.lamp(
                "rectangle", translation(*center) @ turn @ np.diag([size[0] / 2, size[1] / 2, 1, 1]), material
            )
            return
        origin = np.asarray(center) - [size[0] / 2, 0, size[1] / 2]
        self.plane(origin, np.array([size[0], 0, 0]), np.array([0, 0, size[1]]), material)

    def lathe(self, profile: list[tuple[float, float]], material: Material, sides: int = 18) -> None:
        """Turned solid about z: `profile` lists (radius, height) upwards; a point given twice is a crease."""
        angle = np.linspace(0, 2 * np.pi, sides + 1)
        points = np.asarray(profile, float)
        creases = np.flatnonzero((points[1:] == points[:-1]).all(1)) + 1
        for radius, height in (part.T for part in np.split(points, creases)):
            x, y = np.outer(radius, np.cos(angle)), np.outer(radius, np.sin(angle))
            self.sheet(np.stack([x, y, np.broadcast_to(height[:, None], x.shape)], -1), material)

    def cushion(
        self,
        center: tuple[float, float, float],
        size: tuple[float, float, float],
        material: Material,
        roundness: float = 0.35,
    ) -> None:
        """A box with soft edges."""
        unit = superellipsoid(round(roundness, 2), 15, 25)
        self.sheet(np.asarray(center) + unit * np.asarray(size) / 2, material)

    def sheet(self, grid: np.ndarray, material: Material) -> None:
        """Smooth surface through a grid of points [rows columns 3]."""
        rows, columns = grid.shape[:2]
        v, u = np.meshgrid(np.linspace(0, 1, rows), np.linspace(0, 1, columns), indexing="ij")
        uv = np.stack([u, v], -1).reshape(-1, 2)
        self.put(grid.reshape(-1, 3), grid_faces(rows, columns), uv, material)

    def foliage(
        self,
        rng: np.random.Generator,
        centers: np.ndarray,
        radii: np.ndarray,
        leaf_m: float,
        count: int,
        material: Material,
    ) -> None:
        """`count` random leaf triangles on the ellipsoids `centers` [k 3] with `radii` [k 3]."""
        clump = rng.integers(len(centers), size=count)
        direction = rng.standard_normal((count, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        spot = centers[clump] + direction * radii[clump] * rng.uniform(0.75, 1.05, (count, 1))
        vertices = spot[:, None] + rng.uniform(-leaf_m, leaf_m, (count, 3, 3))
        uv = rng.random((count, 1, 2)).repeat(3, 1)
        self.put(vertices.reshape(-1, 3), np.arange(3 * count).reshape(-1, 3), uv.reshape(-1, 2), material)
