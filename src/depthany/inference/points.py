"""From a prediction to coloured points in space."""

import math

import numpy as np
from numpy.typing import NDArray


def depth_between(
    disparity: NDArray[np.float32], min_depth_m: float, max_depth_m: float
) -> NDArray[np.float32]:
    """Depth [h w] in metres of a disparity of unknown scale and shift, whose ends are known.

    The smallest disparity of the image is put at `max_depth_m`, the largest at `min_depth_m`; between them
    1 / depth grows linearly with disparity.
    """
    low, high = float(disparity.min()), float(disparity.max())
    share = (disparity - low) / max(high - low, 1e-12)  # 0 = farthest, 1 = nearest
    return (1 / (1 / max_depth_m + share * (1 / min_depth_m - 1 / max_depth_m))).astype(np.float32)


def focal_px_of(width: int, fov_deg: float) -> float:
    """Focal length in pixels of an image `width` pixels wide that spans `fov_deg` from left to right."""
    return width / 2 / math.tan(math.radians(fov_deg) / 2)


def points_m(depth_m: NDArray[np.float32], focal_px: float) -> NDArray[np.float32]:
    """Points [h w 3] in metres: x to the right, y down, z forward from the camera.

    A pinhole camera with square pixels, its axis through the middle of the image. Depth is along z.

    Args:
        depth_m: [h w].
    """
    height, width = depth_m.shape
    x = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / focal_px
    y = (np.arange(height, dtype=np.float32) + 0.5 - height / 2) / focal_px
    return np.stack([depth_m * x[None], depth_m * y[:, None], depth_m], axis=2).astype(np.float32)
