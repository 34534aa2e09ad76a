"""The training set: crops from all labeled and unlabeled sets, put together as a `Batch`."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depthany.data.batch import BadFile, Batch
from depthany.data.images import Photo, decode_photo
from depthany.data.left_out import CONVERTED, SKIPPED, Header, Note, inspect
from depthany.data.perturb import Share
from depthany.data.pseudo_labels.store import PseudoLabels
from depthany.data.sampler import Draw
from depthany.data.samples import LabeledSet, NoValidPixel, UnlabeledSet, require_same_size
from depthany.data.transforms import crop_shape, draw_crop
from depthany.system.packages import MissingPackage


class Unusable(ValueError):
    """An image that training cannot use; `reason` is what it is counted by, the message one line about it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Read(IntEnum):
    """What is read at a moment: nothing, or a file of an image of the labeled or unlabeled sets."""

    NOTHING, IMAGE, DEPTH, UNLABELED, PSEUDO_LABEL = range(5)


def _unheard(_what: Read, _index: int) -> None:
    """Nobody wants to know what is being read."""


class TrainingSet(torch.utils.data.Dataset[Batch | BadFile]):
    """All labeled and all unlabeled sets; an index is a list of draws, an item the micro-batch of them.

    Args:
        labeled, unlabeled: sets, concatenated in this order without re-sampling (paper, section 4.1).
        crop_size: side of the square crops in pixels, or [height, width].
        convert_images: accept gray, RGBA, CMYK and 16-bit images.
        unreadable: `error` or `skip` an image that cannot be read, or a labeled one whose depth cannot be
            read, has another size or no valid pixel. The micro-batch is smaller by those left out.
        decode: `exact` decodes images whole; `reduced` takes large JPEGs at 1/2, 1/4 or 1/8, the least that
            the crop enlarges by at most 5 %. That is faster, and aliases less than the cubic resize of the
            whole, which filters nothing; it is not what the released code does.
        min_side: an unlabeled image with a smaller side, in pixels, counts as unreadable.
        pseudo_labels: stored labels of the unlabeled sets; an image that could not be labeled counts as
            unreadable.

    Attributes:
        noting: told what is read from now on, and the index that `name_of` takes.
    """

    noting: Callable[[Read, int], None] = staticmethod(_unheard)

    def __init__(
        self,
        labeled: Sequence[LabeledSet],
        unlabeled: Sequence[UnlabeledSet],
        crop_size: int | Sequence[int],
        convert_images: bool = False,
        unreadable: str = "error",
        decode: str = "exact",
        min_side: int = 1,
        pseudo_labels: PseudoLabels | None = None,
    ) -> None:
        if unreadable not in ("error", "skip"):
            raise ValueError(f"unknown data.unreadable {unreadable!r}; choose from error, skip")
        if decode not in ("exact", "reduced"):
            raise ValueError(f"unknown data.decode {decode!r}; choose from exact, reduced")
        self.crop_hw = height, width = crop_shape(crop_size)
        self._min_hw = (math.ceil(height / 1.05), math.ceil(width / 1.05)) if decode == "reduced" else None
        self.labeled, self.unlabeled, self.min_side = list(labeled), list(unlabeled), min_side
        self.convert_images, self.unreadable = convert_images, unreadable
        self.pseudo_labels = pseudo_labels
        self._labeled_ends = np.cumsum([len(part) for part in self.labeled], dtype=np.int64)
        self._unlabeled_ends = np.cumsum([len(part) for part in self.unlabeled], dtype=np.int64)
        self.labeled_count = int(self._labeled_ends[-1]) if self.labeled else 0
        self.unlabeled_count = int(self._unlabeled_ends[-1]) if self.unlabeled else 0

    def __getitem__(self, draws: list[Draw]) -> Batch | BadFile:
        try:
            return self._batch(draws)
        finally:
            self.noting(Read.NOTHING, 0)

    def name_of(self, what: Read, index: int) -> str:
        """Name of a file that is being read, for messages."""
        if what in (Read.IMAGE, Read.DEPTH):
            part, index = _locate(self._labeled_ends, index)
            return self.labeled[part].files(index)[what == Read.DEPTH]
        part, index = _locate(self._unlabeled_ends, index)
        return ("the pseudo-label of " * (what == Read.PSEUDO_LABEL)) + self.unlabeled[part].name(index)

    def _batch(self, draws: list[Draw]) -> Batch | BadFile:
        (height, width), notes = self.crop_hw, list[Note]()
        targets = [draw for draw in draws if draw.labeled]
        image = torch.empty(len(targets), 3, height, width, dtype=torch.uint8)
        disparity = torch.empty(len(targets), height, width)
        mask = torch.empty(len(targets), height, width, dtype=torch.bool)
        plain, count, places = list[tuple[Tensor, Tensor | None]](), 0, list[int]()
        for draw in draws:
            try:
                if draw.labeled:
                    image[count], disparity[count], mask[count] = self._labeled_view(draw)
                    count += 1
                else:
                    plain.append(self._unlabeled_view(draw, notes))
                    places.append(draw.place)
            except Unusable as error:
                if self.unreadable == "error":
                    return BadFile(f"{error} (data.unreadable=skip leaves such images out)")
                notes.append(Note(SKIPPED, error.reason, str(error), draw.labeled))
            except ValueError as error:
                return BadFile(str(error))
        unlabeled_image = torch.empty(len(plain), 3, height, width, dtype=torch.uint8)
        label = None if self.pseudo_labels is None else torch.empty(len(plain), height, width)
        for i, (view, pseudo_label) in enumerate(plain):
            unlabeled_image[i] = view
            if label is not None and pseudo_label is not None:
                label[i] = pseudo_label
        drawn = max((draw.places for draw in draws if not draw.labeled), default=0)
        share = Share(torch.tensor(places, dtype=torch.int64), drawn)
        return Batch(image[:count], disparity[:count], mask[:count], unlabeled_image, notes, label, share)

    def _labeled_view(self, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
        part, index = _locate(self._labeled_ends, draw.index)
        labeled, (image_name, depth_name) = self.labeled[part], self.labeled[part].files(index)
        stored: bytes | NDArray[np.uint8] | None = None
        with _unusable(lambda: inspect(stored).fault(1, self.convert_images)):
            self.noting(Read.IMAGE, draw.index)
            stored = labeled.stored_image(index)
            photo = self._decode(stored, image_name)
        with _unusable(lambda: "unreadable depth"):
            self.noting(Read.DEPTH, draw.index)
            labels = labeled.labels(index)
        with _unusable(lambda: "sizes differ"):
            require_same_size(image_name, (photo.height, photo.width), depth_name, labels.mask.shape)
        crop = draw_crop(photo.height, photo.width, self.crop_hw, draw.seed)
        mask = crop.of_map(labels.mask)
        ends = disparity_range(labels.disparity, labels.mask)
        target = normalise_disparity(crop.of_map(labels.disparity), mask, ends)
        return _chw(crop.of_image(photo)), torch.from_numpy(target), torch.from_numpy(mask)

    def _unlabeled_view(self, draw: Draw, notes: list[Note]) -> tuple[Tensor, Tensor | None]:
        part, index = _locate(self._unlabeled_ends, draw.index)
        images, header = self.unlabeled[part], Header()
        with _unusable(lambda: header.fault(self.min_side, self.convert_images)):
            self.noting(Read.UNLABELED, draw.index)
            stored = images.stored_image(index)
            header = inspect(stored)
            header.require_side(self.min_side, images.name(index))
            photo = self._decode(stored, images.name(index))
        if header.conversion:
            notes.append(Note(CONVERTED, header.conversion, images.name(index), labeled=False))
        crop, label = draw_crop(photo.height, photo.width, self.crop_hw, draw.seed), None
        if self.pseudo_labels is not None:
            self.noting(Read.PSEUDO_LABEL, draw.index)
            stored_label = self.pseudo_labels.of_image(part, index, (photo.height, photo.width))
            if stored_label is None:
                raise Unusable("without pseudo-label", f"{images.name(index)}: has no pseudo-label")
            label = torch.from_numpy(crop.of_smooth_map(stored_label))
        return _chw(crop.of_image(photo)), label

    def _decode(self, stored: bytes | NDArray[np.uint8], name: str) -> Photo:
        if isinstance(stored, np.ndarray):
            return Photo(stored, *stored.shape[:2])
        return decode_photo(stored, name, self.convert_images, self._min_hw)


@contextmanager
def _unusable(reason: Callable[[], str]) -> Iterator[None]:
    """A `ValueError` from inside becomes `Unusable`, except for a missing package: no image is to blame."""
    try:
        yield
    except MissingPackage:
        raise
    except NoValidPixel as error:
        raise Unusable("no valid pixel", str(error)) from None
    except ValueError as error:
        raise Unusable(reason(), str(error)) from None


def disparity_range(disparity: NDArray[np.float32], mask: NDArray[np.bool_]) -> tuple[np.float32, np.float32]:
    """Smallest and largest valid disparity of a map [h w] of which at least one pixel is valid."""
    low, high, _, _ = cv2.minMaxLoc(disparity, mask.view(np.uint8))  # a fifth of the time of disparity[mask]
    return np.float32(low), np.float32(high)


def normalise_disparity(
    disparity: NDArray[np.float32], mask: NDArray[np.bool_], ends: tuple[np.float32, np.float32]
) -> NDArray[np.float32]:
    """Min-max to [0, 1]; invalid pixels become 0 (paper, section 3.1).

    Args:
        disparity, mask: [h w] of a view.
        ends: smallest and largest valid disparity of the whole map. The paper does not say whether before
            or after the crop; the loss removes shift and scale either way.
    """
    low, high = ends
    scaled = (disparity - low) / max(float(high - low), 1e-12)
    return np.where(mask, scaled, np.float32(0))


def _locate(ends: NDArray[np.int64], index: int) -> tuple[int, int]:
    part = int(np.searchsorted(ends, index, side="right"))
    return part, index - (int(ends[part - 1]) if part else 0)


def _chw(image: NDArray[np.uint8]) -> Tensor:
    planes = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(image, list(planes))  # a fifth of the time of a transposed copy
    return torch.from_numpy(planes)
