"""Labeled data sets as pairs of files: an image, and a mask of its classes."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from depthany.data.class_list import IGNORED, UNKNOWN, ClassList
from depthany.data.images import read_bytes
from depthany.data.labeled import Decoded, PairedDepth
from depthany.data.pairs import Pair, missing
from depthany.data.targets import Unit
from depthany.system.packages import reason

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
_CITYSCAPES_CLASSES, _RAW_IDS = 19, range(19, 34)
_ADE20K_CLASSES = 150


def read_mask(path: Path) -> NDArray[Any]:
    """Returns the numbers [h w] that a mask file stores; for a palette, its indices, not its colours.

    Raises:
        ValueError: the file cannot be read, or holds colours.
    """
    stored = read_bytes(path)
    try:
        with Image.open(io.BytesIO(stored)) as file:
            mode, numbers = file.mode, np.asarray(file)
    except Exception as error:  # Pillow's parsers raise many kinds on a damaged file
        raise ValueError(f"{path}: cannot read the mask: {reason(error)}") from None
    if numbers.ndim == 3 and mode == "RGB" and (numbers == numbers[:, :, :1]).all():
        numbers = numbers[:, :, 0]
    if numbers.ndim != 2 or numbers.dtype.kind not in "uib":
        raise ValueError(
            f"{path}: expected a mask with a class number in each pixel, in one channel or with a palette, "
            f"got a picture of mode {mode}: colours have no numbers; save the masks with a palette"
        )
    return numbers


def class_numbers(path: Path, stored: NDArray[Any], classes: ClassList, lookup: NDArray) -> NDArray[np.uint8]:
    """Returns [h w] class numbers, 255 = to ignore, of `stored`, the array in a mask file.

    Args:
        path: path of the file, for messages.
        lookup: lookup table of `classes`, see `ClassList.lookup`.

    Raises:
        ValueError: a value belongs to no class.
    """
    plane = stored.astype(np.int64)
    if plane.size and (plane.min() < 0 or plane.max() >= len(lookup)):
        raise ValueError(
            f"{path}: values from {plane.min()} to {plane.max()}; expected 0 to {len(lookup) - 1}"
        )
    numbers = lookup[plane]  # [h w]
    if (unknown := numbers == UNKNOWN).any():
        value, pixels = int(plane[unknown].max()), int(unknown.sum())
        raise ValueError(
            f"{path}: the value {value} belongs to no class ({pixels} such pixels); "
            f"{classes.where} has {len(classes.names)} classes, stored as {_listed(classes)}; {IGNORED} is "
            "ignored"
            f"{_hint(value, len(classes.names))}"
        )
    return numbers.astype(np.uint8)


def _listed(classes: ClassList) -> str:
    values = sorted(value for of_class in classes.ids for value in of_class)
    if values == list(range(values[0], values[-1] + 1)):
        return f"{values[0]} to {values[-1]}"
    return ", ".join(map(str, values))


def _hint(value: int, count: int) -> str:
    """Returns a likely reason for a value that belongs to no class."""
    if count == _CITYSCAPES_CLASSES and value in _RAW_IDS:
        return (
            ": these look like the label ids of Cityscapes (*_labelIds.png), not its 19 train ids: read "
            "them with dataset=cityscapes, labels=raw, or take *_labelTrainIds.png"
        )
    if count == _ADE20K_CLASSES and value == count:
        return ": the files of ADE20K count from 1, and 0 is everything else: read them with dataset=ade20k"
    return ": give it a class or put it under `ignore` in the file of classes"


class PairedMasks(PairedDepth):
    """Base class of the readers of masks. A subclass lists its pairs (`find`).

    Args:
        root: folder of the data set.
        classes: what the files store.
        common: allow_incomplete, list_file, expected and exif_orientation of `PairedDepth`.

    Attributes:
        classes: names, colours and stored values.
    """

    unit: Unit = "class"
    label_word = "mask"

    def __init__(self, root: str, classes: ClassList, **common: Any) -> None:
        self.classes = classes
        self._lookup = classes.lookup()
        super().__init__(root, **common)

    def existing(self, rows: Iterable[tuple[str, str]]) -> tuple[Sequence[Pair], list[str]]:
        """Returns pairs of (image, mask) paths below the root, and those files that do not exist."""
        rows = list(rows)
        absent = set(missing(self.root, (path for row in rows for path in row)))
        whole = [row for row in rows if not absent.intersection(row)]
        return self.pairs_of(whole), sorted(absent)

    def decode(self, pair: Pair) -> Decoded:
        """Returns class numbers as values; pixels to ignore are not valid."""
        stored = read_mask(pair.depth)
        numbers = class_numbers(pair.depth, stored, self.classes, self._lookup)
        return Decoded(numbers.astype(np.float32), numbers != IGNORED, stored_as=str(stored.dtype))

    def range_text(self) -> str:
        """Returns why no pixel is valid, and the remedy, for a message."""
        return f"(all of them are {IGNORED} or ignored): remove the pair"
