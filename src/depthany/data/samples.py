"""What a set of images hands out: a `DepthSample` or its parts; and what a set must be able to do."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DepthSample:
    """One labeled image.

    image: [h w 3] uint8 RGB.
    disparity: [h w] float32 in 1/m (or relative, where a set knows no scale), 0 = infinitely far.
    mask: [h w] bool, True where the disparity is known; it is finite there.
    """

    name: str
    image: NDArray[np.uint8]
    disparity: NDArray[np.float32]
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Labels:
    """The depth of one image, as in `DepthSample`: disparity [h w] float32, mask [h w] bool."""

    disparity: NDArray[np.float32]
    mask: NDArray[np.bool_]


Point = tuple[int, int]  # row, column


@dataclass(frozen=True)
class OrdinalSample:
    """An image with points of which it is known which one is nearer.

    image: [h w 3] uint8 RGB. pairs: (nearer, farther) points, each (row, column) inside the image.
    scene: type of scene, by which accuracy is reported.
    """

    name: str
    scene: str
    image: NDArray[np.uint8]
    pairs: list[tuple[Point, Point]]


class LabeledSet(Protocol):
    """Images with depth; `min_depth` and `max_depth` in metres bound what evaluation counts.

    `stored_image` gives the bytes of an image file, or its pixels [h w 3] uint8 where the set holds arrays:
    training decodes no more of it than the crop needs. `read` gives image and labels whole. `files` names
    the files of image and depth for messages.
    """

    min_depth: float
    max_depth: float

    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def files(self, index: int) -> tuple[str, str]: ...
    def stored_image(self, index: int) -> bytes | NDArray[np.uint8]: ...
    def labels(self, index: int) -> Labels: ...
    def read(self, index: int, convert_images: bool = False) -> DepthSample: ...


class UnlabeledSet(Protocol):
    """Plain images; `stored_image` as in `LabeledSet`, `shard_sizes` [s] images that lie together on disk."""

    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def shard_sizes(self) -> NDArray[np.int64]: ...
    def identity(self) -> str: ...
    def stored_image(self, index: int) -> bytes | NDArray[np.uint8]: ...
    def read(self, index: int, convert_images: bool = False) -> NDArray[np.uint8]: ...


class NoValidPixel(ValueError):
    """A depth map of which nothing can be used; `labels` of a set raises it."""


def require_same_size(
    image_path: str, image_hw: tuple[int, ...], depth_path: str, depth_hw: tuple[int, ...]
) -> None:
    """Raise a `ValueError` that names both files where image and depth differ in height or width."""
    if image_hw != depth_hw:
        raise ValueError(
            f"{depth_path}: depth is {depth_hw[1]}x{depth_hw[0]}, its image {image_path} is "
            f"{image_hw[1]}x{image_hw[0]}: "
            "they must have the same size"
        )
