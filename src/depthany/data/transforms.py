"""Resize, random crop and flip: the transforms that an image shares with its labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from depthany.data.images import Photo

cv2.setNumThreads(0)  # loader processes run in parallel already; more threads would compete with PyTorch's
# Pixels of a resized image: as many as an input of the models has at most, or a ratio of sides of 16.
_MAX_PIXELS, _LARGEST_RATIO = 40_000 * 14**2, 16
_NEAREST = cv2.INTER_NEAREST_EXACT  # INTER_NEAREST is off by up to half a source pixel against the image


class TooLong(ValueError):
    """The sides of an image differ so much that it would fill the memory at the size of a crop."""


def crop_shape(crop_size: int | Sequence[int]) -> tuple[int, int]:
    """Returns (height, width) of a crop that is given as one number or as [height, width], in pixels.

    Raises:
        ValueError: it is neither, or a side is below 1.
    """
    sides = (crop_size, crop_size) if isinstance(crop_size, int) else tuple(crop_size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(
            f"crop_size={crop_size}: expected one number of pixels, such as 518, or [height, width]"
        )
    return sides[0], sides[1]


def covering_size(height: int, width: int, crop_hw: tuple[int, int]) -> tuple[int, int]:
    """Returns the smallest size of the same aspect ratio that covers a crop, as (height, width).

    For a square crop the shorter side becomes exactly its side. It is `lower_bound` of MiDaS's Resize.

    Args:
        height, width: height and width of the image, in pixels.
        crop_hw: height and width of the crop.

    Raises:
        TooLong: it has more pixels than a model's input may have, and than 16 squares of the crop's longer
            side.
    """
    scale = max(crop_hw[0] / height, crop_hw[1] / width)
    covering = max(crop_hw[0], round(height * scale)), max(crop_hw[1], round(width * scale))
    most = max(_MAX_PIXELS, _LARGEST_RATIO * max(crop_hw) ** 2)
    if covering[0] * covering[1] > most:
        raise TooLong(
            f"the image is ({height}, {width}) and would be {covering} to cover a crop of {crop_hw}, more "
            f"than {most / 1e6:.1f} million pixels: crop the image, or remove it"
        )
    return covering


class Region(Protocol):
    """The part taken from an image and its maps: a `Crop`, or a `data.views.View`."""

    def of_image(self, photo: Photo) -> NDArray[np.uint8]: ...
    def of_map(self, values: NDArray) -> NDArray:
        """Returns the region of `values` [h w] of any type."""
        ...


@dataclass(frozen=True)
class Crop:
    """A rectangle of a resized image, possibly mirrored.

    resized_hw: height and width of the image after resizing.
    top, left, height, width: the rectangle, in pixels of the resized image.
    flip: mirror the rectangle left to right.
    """

    resized_hw: tuple[int, int]
    top: int
    left: int
    height: int
    width: int
    flip: bool

    def of_image(self, photo: Photo) -> NDArray[np.uint8]:
        """Returns the crop of an image, [height width 3] uint8, resized by cubic interpolation."""
        pixels: NDArray = photo.pixels
        height, width = self.resized_hw
        if photo.reduction > 1:
            pixels = _enlarged(photo, height, width)
        elif pixels.shape[:2] != (height, width):
            pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_CUBIC)
        cropped = pixels[self._rows, self._columns]
        return np.ascontiguousarray(cv2.flip(cropped, 1) if self.flip else cropped, dtype=np.uint8)

    def of_map(self, values: NDArray) -> NDArray:
        """Returns the crop of `values` [h w] of any type by nearest neighbour; reads no other pixel."""
        rows = _nearest(values.shape[0], self.resized_hw[0])[self._rows]
        columns = _nearest(values.shape[1], self.resized_hw[1])[self._columns]
        return values[rows].take(columns[::-1] if self.flip else columns, axis=1)

    def of_smooth_map(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the crop of `values` [h w], which are valid everywhere, by bilinear interpolation."""
        if values.shape != self.resized_hw:
            size = self.resized_hw[::-1]
            values = cv2.resize(values, size, interpolation=cv2.INTER_LINEAR).astype(np.float32, copy=False)
        cropped = values[self._rows, self._columns]
        return np.ascontiguousarray(cropped[:, ::-1] if self.flip else cropped)

    @property
    def _rows(self) -> slice:
        return slice(self.top, self.top + self.height)

    @property
    def _columns(self) -> slice:
        return slice(self.left, self.left + self.width)


def draw_crop(height: int, width: int, crop_hw: tuple[int, int], seed: int) -> Crop:
    """Returns a random crop of the image at its `covering_size`, flipped with probability 0.5 (paper,
    section 4.1).

    Args:
        height, width: height and width of the image, in pixels.
        crop_hw: height and width of the crop.
        seed: decides position and flip.
    """
    resized_hw = covering_size(height, width, crop_hw)
    random = np.random.default_rng(seed)
    top = int(random.integers(resized_hw[0] - crop_hw[0] + 1))
    left = int(random.integers(resized_hw[1] - crop_hw[1] + 1))
    return Crop(resized_hw, top, left, *crop_hw, flip=bool(random.integers(2)))


def _enlarged(photo: Photo, height: int, width: int) -> NDArray[np.uint8]:
    """Returns a photo that was decoded at a reduced size as [height width 3] uint8, by cubic interpolation.

    A pixel is k x k pixels of the image. The last row and column of the file may reach beyond the edge, so
    that part of the result is cut off.
    """
    k = photo.reduction
    fx, fy = k * width / photo.width, k * height / photo.height
    rows, columns = (slice(None, None, -1 if each else 1) for each in photo.reversed)
    in_file_order = np.ascontiguousarray(photo.pixels[rows, columns])
    pixels = cv2.resize(in_file_order, None, fx=fx, fy=fy, interpolation=cv2.INTER_CUBIC)
    return np.asarray(pixels[:height, :width], np.uint8)[rows, columns]


def _nearest(source: int, target: int) -> NDArray[np.intp]:
    """Returns, for each of `target` pixels, the nearest of `source` pixels, as cv2.resize chooses it."""
    indices = np.arange(source, dtype=np.float32)[None]  # exact below 2**24
    return cv2.resize(indices, (target, 1), interpolation=_NEAREST)[0].astype(np.intp)
