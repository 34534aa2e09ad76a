"""Compares rendered depth with a scene whose depth is known on paper."""

import numpy as np

from .camera import Camera
from .render import exact_depth
from .shapes import World
from .style import Material


def plane_errors(pitch_deg: float = -12.0, yaw_deg: float = 20.0, roll_deg: float = 5.0) -> dict[str, float]:
    """Largest relative error of z on ground nearer than 60 m, and the share of pixels with a wrong sky flag.

    A ray d from height h meets the ground z = 0 at t = h / -d_z; its planar depth is t (d . ahead).
    """
    world = World()
    world.frame("ground").slab((0, 0, 0), (300, 300), Material(np.full((64, 64, 3), 128, np.uint8), 2.0))
    camera = Camera(168, 126, 60.0, (0.3, -0.2, 1.5), yaw_deg, pitch_deg, roll_deg)
    depth_m, sky = exact_depth(world.scene({}), camera)
    rays = camera.rays()
    distance_m = 1.5 / np.maximum(-rays[..., 2], 1e-9)
    expected_m = distance_m * (rays @ camera.axes()[2])
    ground, above = (expected_m > 0) & (expected_m < 60), rays[..., 2] > 0
    error = np.abs(depth_m[ground] / expected_m[ground] - 1).max()
    wrong = np.count_nonzero(sky[ground]) + np.count_nonzero(~sky[above])
    return {"relative_error": float(error), "sky_disagreement": wrong / sky.size}
