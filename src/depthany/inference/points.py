"""From a map of depth to points in space."""

import math

import numpy as np
from numpy.typing import NDArray


def depth_between(
    disparity: NDArray[np.float32], min_depth_m: float, max_depth_m: float
) -> NDArray[np.float32]:
    """Returns depth_m [h w] of a disparity [h w] of unknown scale and shift.

    The smallest disparity of the image becomes `max_depth_m` and the largest `min_depth_m`; between them
    1 / depth_m is linear in the disparity.
    """
    low, high = float(disparity.min()), float(disparity.max())
    share = (disparity - low) / max(high - low, 1e-12)  # 0 = farthest, 1 = nearest
    return (1 / (1 / max_depth_m + share * (1 / min_depth_m - 1 / max_depth_m))).astype(np.float32)


def focal_px_of(width: int, fov_deg: float) -> float:
    """Returns the focal length in pixels of an image that is `width` pixels and `fov_deg` degrees wide."""
    return width / 2 / math.tan(math.radians(fov_deg) / 2)


def points_m(depth_m: NDArray[np.float32], focal_px: float) -> NDArray[np.float32]:
    """Returns points [h w 3] in metres: x to the right, y down, z forward from the camera.

    The camera is a pinhole with square pixels whose axis goes through the middle of the image.

    Args:
        depth_m: [h w] depth along z.
        focal_px: focal length in pixels.
    """
    height, width = depth_m.shape
    x = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / focal_px
    y = (np.arange(height, dtype=np.float32) + 0.5 - height / 2) / focal_px
    return np.stack([depth_m * x[None], depth_m * y[:, None], depth_m], axis=2).astype(np.float32)
