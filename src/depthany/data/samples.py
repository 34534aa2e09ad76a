"""What a data set returns for one image, and what a data set must be able to do."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from depthany.data.targets import Labels, Unit


@dataclass(frozen=True)
class LabeledSample:
    """One image and its labels.

    image: [h w 3] uint8 RGB.
    labels: [h w] planes of the same height and width.
    """

    name: str
    image: NDArray[np.uint8]
    labels: Labels


Point = tuple[int, int]  # row, column


@dataclass(frozen=True)
class OrdinalSample:
    """An image with pairs of points; which point is nearer is known.

    image: [h w 3] uint8 RGB.
    pairs: (nearer, farther) points, each (row, column) inside the image.
    scene: type of scene; accuracy is reported for each type.
    """

    name: str
    scene: str
    image: NDArray[np.uint8]
    pairs: list[tuple[Point, Point]]


class LabeledSet(Protocol):
    """Images with labels.

    unit: unit of the labels.
    min_depth, max_depth: metres; predictions are clamped to this range when they are scored.

    A set of classes (unit "class") has the attribute `classes`, a `data.class_list.ClassList`. Where these
    come from a file, a static method `listed_classes` of the same arguments reads them alone.

    A set whose labels belong to the images as they are stored, without their EXIF orientation, has an
    attribute `upright` that is False.
    """

    unit: Unit
    min_depth: float
    max_depth: float

    def __len__(self) -> int: ...
    def name(self, index: int) -> str:
        """Returns a name that is unique in the data set."""

    def files(self, index: int) -> tuple[str, str]:
        """Returns the paths of image and labels, for messages."""

    def stored_image(self, index: int) -> bytes | NDArray[np.uint8]:
        """Returns the content of the image file, or pixels [h w 3] uint8 where the set holds arrays.

        Training decodes no more of a file than the crop needs.
        """

    def labels(self, index: int) -> Labels:
        """Returns the labels. Raises NoValidPixel if no pixel is valid."""

    def read(self, index: int, convert_images: bool = False) -> LabeledSample:
        """Returns image and labels, both whole."""


class UnlabeledSet(Protocol):
    """Images without labels; see `LabeledSet`."""

    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def shard_sizes(self) -> NDArray[np.int64]:
        """Returns [s] the numbers of images that lie together on disk, in the order of the indices."""

    def identity(self) -> str:
        """Returns a hash that changes with the images of the set or their order."""

    def stored_image(self, index: int) -> bytes | NDArray[np.uint8]: ...


class NoValidPixel(ValueError):
    """No pixel of an image has a valid label."""


class UnknownUnit(ValueError):
    """The settings of a data set do not say what the numbers in its files mean.

    This is not the fault of one file: training stops at it even under `data.unreadable=skip`.
    """


def require_same_size(
    path: str,
    hw: tuple[int, ...],
    other_path: str,
    other_hw: tuple[int, ...],
    what: str = "depth",
    of: str = "image",
) -> None:
    """Raises ValueError, which names both files, if two maps differ in height or width.

    Args:
        path, hw: path, height and width of the first, such as an image.
        other_path, other_hw: path, height and width of the second, such as its depth.
        what, of: what the second and the first are, for the message.
    """
    if hw != other_hw:
        raise ValueError(
            f"{other_path}: {what} is {other_hw[1]}x{other_hw[0]}, its {of} {path} is {hw[1]}x{hw[0]}: "
            "they must have the same size"
        )
