"""Resize, random crop and flip: the transforms that keep a label true."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from depthany.data.images import Photo

cv2.setNumThreads(0)  # loader processes are the parallelism; OpenCV's own threads would fight with PyTorch's
_NEAREST = cv2.INTER_NEAREST_EXACT  # INTER_NEAREST is off by up to half a source pixel against the image


def shorter_side_to(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width after scaling so that the shorter side is exactly `size`."""
    scale = size / min(height, width)
    return max(size, round(height * scale)), max(size, round(width * scale))


@dataclass(frozen=True)
class View:
    """A square cut from a picture that was brought to `height` x `width`, perhaps mirrored."""

    height: int
    width: int
    top: int
    left: int
    size: int
    flip: bool

    def of_image(self, photo: Photo) -> NDArray[np.uint8]:
        """[size size 3] uint8, resized cubically."""
        pixels: NDArray = photo.pixels
        k = photo.reduction
        if k > 1:  # a pixel stands for k x k, at the right and lower edge perhaps for some beyond the image
            fx, fy = k * self.width / photo.width, k * self.height / photo.height
            pixels = cv2.resize(pixels, None, fx=fx, fy=fy, interpolation=cv2.INTER_CUBIC)
        elif pixels.shape[:2] != (self.height, self.width):
            pixels = cv2.resize(pixels, (self.width, self.height), interpolation=cv2.INTER_CUBIC)
        cut = pixels[self.top : self.top + self.size, self.left : self.left + self.size]
        return np.ascontiguousarray(cv2.flip(cut, 1) if self.flip else cut, dtype=np.uint8)

    def of_map(self, values: NDArray) -> NDArray:
        """[size size] of a map [h w] of any type, each pixel the nearest one; only these are read."""
        rows = _nearest(values.shape[0], self.height)[self.top : self.top + self.size]
        columns = _nearest(values.shape[1], self.width)[self.left : self.left + self.size]
        return values[rows].take(columns[::-1] if self.flip else columns, axis=1)

    def of_smooth_map(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """[size size] of a map [h w] that has a value everywhere, at any resolution, bilinear."""
        if values.shape != (self.height, self.width):
            size = (self.width, self.height)
            values = cv2.resize(values, size, interpolation=cv2.INTER_LINEAR).astype(np.float32, copy=False)
        cut = values[self.top : self.top + self.size, self.left : self.left + self.size]
        return np.ascontiguousarray(cut[:, ::-1] if self.flip else cut)


def draw_view(height: int, width: int, size: int, seed: int) -> View:
    """Shorter side to `size`, random square crop, horizontal flip with p = 0.5 (paper, section 4.1).

    Args:
        height, width: of the image as a whole.
        size: side of the crop in pixels.
        seed: decides crop and flip.
    """
    height, width = shorter_side_to(height, width, size)
    draw = np.random.default_rng(seed)
    top, left = int(draw.integers(height - size + 1)), int(draw.integers(width - size + 1))
    return View(height, width, top, left, size, flip=bool(draw.integers(2)))


def _nearest(source: int, target: int) -> NDArray[np.intp]:
    """Index of the source pixel nearest to each of the target's: what cv2 does to whole maps, asked of it."""
    indices = np.arange(source, dtype=np.float32)[None]  # exact below 2**24
    return cv2.resize(indices, (target, 1), interpolation=_NEAREST)[0].astype(np.intp)
