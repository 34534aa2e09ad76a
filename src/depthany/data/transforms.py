"""Resize, random crop and flip: the transforms that keep a label true."""

import cv2
import numpy as np
from numpy.typing import NDArray

cv2.setNumThreads(0)  # loader processes are the parallelism; OpenCV's own threads would fight with PyTorch's
_NEAREST = (
    cv2.INTER_NEAREST_EXACT
)  # plain INTER_NEAREST is off by up to half a source pixel against the image


def shorter_side_to(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width after scaling so that the shorter side is exactly `size`."""
    scale = size / min(height, width)
    return max(size, round(height * scale)), max(size, round(width * scale))


def random_view(
    image: NDArray[np.uint8], size: int, seed: int, maps: tuple[NDArray, ...] = ()
) -> tuple[NDArray, ...]:
    """Shorter side to `size`, random square crop, horizontal flip with p = 0.5 (paper, section 4.1).

    Args:
        image: [h w 3] uint8, resized cubically.
        size: side of the crop in pixels.
        seed: decides crop and flip.
        maps: [h w] float32 or bool, resized to the nearest pixel and cut alike.

    Returns:
        The views of the image and of each map, [size size (3)].
    """
    height, width = shorter_side_to(image.shape[0], image.shape[1], size)
    draw = np.random.default_rng(seed)
    top, left = int(draw.integers(height - size + 1)), int(draw.integers(width - size + 1))
    flip = bool(draw.integers(2))
    views = [_resize(image, height, width, cv2.INTER_CUBIC)]
    views += [_resize(values, height, width, _NEAREST) for values in maps]
    views = [view[top : top + size, left : left + size] for view in views]
    return tuple(np.ascontiguousarray(view[:, ::-1] if flip else view) for view in views)


def _resize(values: NDArray, height: int, width: int, interpolation: int) -> NDArray:
    if values.shape[:2] == (height, width):
        return values
    if values.dtype == np.bool_:
        return cv2.resize(values.astype(np.uint8), (width, height), interpolation=interpolation).astype(bool)
    return cv2.resize(values, (width, height), interpolation=interpolation)
