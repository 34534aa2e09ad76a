"""The training set: random crops of all labeled and unlabeled images, put together as a `Batch`."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum

import cv2
import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from depthany.data.batch import BadFile, Batch
from depthany.data.images import Photo, decode_photo
from depthany.data.labeled_options import PLAIN, LabeledCrop, LabeledOptions, labeled_target, largest
from depthany.data.left_out import CONVERTED, SKIPPED, ImageHeader, ImageIssue, read_header
from depthany.data.orientation import require_aligned
from depthany.data.perturb import Share
from depthany.data.pseudo_labels.store import PseudoLabels
from depthany.data.sampler import Draw
from depthany.data.samples import LabeledSet, NoValidPixel, UnknownUnit, UnlabeledSet
from depthany.data.targets import TARGETS, is_flat, require_unit
from depthany.data.transforms import TooLong, crop_shape, draw_crop
from depthany.system.choices import require_choice
from depthany.system.packages import MissingPackage

USUAL_LABEL_PIXELS = 2**20  # of labels that keep their own size, which is not known before they are read


class Unusable(ValueError):
    """Training cannot use an image. `reason` is a few words, by which such images are counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Flat(ValueError):
    """The labels of an image are readable but teach nothing: it is left out, even under `error`."""


class FileKind(IntEnum):
    """The kind of file that a loader process is reading."""

    NOTHING, IMAGE, LABELS, UNLABELED, PSEUDO_LABEL = range(5)


def _ignore(_kind: FileKind, _index: int) -> None:
    """The default of `TrainingSet.on_read`."""


class TrainingSet(torch.utils.data.Dataset[Batch | BadFile]):
    """All labeled and unlabeled images. An item is the micro-batch of a list of draws.

    Args:
        labeled, unlabeled: data sets. They are concatenated in this order, without re-sampling (paper,
            section 4.1).
        crop_size: side of the square crops in pixels, or [height, width].
        convert_images: accept gray, RGBA, CMYK and 16-bit images.
        unreadable: what happens to an image that cannot be read or is too long (see `covering_size`), or a
            labeled image whose labels cannot be read, have another size or no valid pixel. `error` stops;
            `skip` leaves it out, and the micro-batch is smaller. Labels that teach nothing about relative
            depth (see `is_flat`) are always left out.
        decode: `exact` decodes images whole, as the released code does. `reduced` decodes large JPEGs at 1/2,
            1/4 or 1/8 of their size, as long as the crop enlarges them by at most 5 %. That is faster, and
            aliases less than the cubic resize of the whole image, which filters nothing. Views that are
            turned, cut or stretched always decode the whole image.
        min_side: an unlabeled image with a smaller side, in pixels, counts as unreadable.
        pseudo_labels: stored labels of the unlabeled images. An image without label counts as unreadable.
        target: what is made of the labels, a name in `TARGETS`.
        options: how the stage wants labeled images.

    Attributes:
        on_read: called with the kind of file that is about to be read and the index of its image among all
            labeled or all unlabeled ones (see `name_of`).

    Raises:
        ValueError: a choice is unknown, or the labels of a data set cannot become the target.
    """

    on_read: Callable[[FileKind, int], None] = staticmethod(_ignore)

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
        target: str = "disparity01",
        options: LabeledOptions = PLAIN,
    ) -> None:
        require_choice("data.unreadable", unreadable, ("error", "skip"))
        require_choice("data.decode", decode, ("exact", "reduced"))
        require_choice("target", target, TARGETS)
        self.crop_hw = height, width = crop_shape(crop_size)
        is_reduced = decode == "reduced" and not options.needs_whole_files
        self._min_hw = (math.ceil(height / 1.05), math.ceil(width / 1.05)) if is_reduced else None
        self.labeled, self.unlabeled, self.min_side = list(labeled), list(unlabeled), min_side
        self.convert_images, self.unreadable, self.target = convert_images, unreadable, target
        self.pseudo_labels, self.options = pseudo_labels, options
        self._labeled_ends = np.cumsum([len(part) for part in self.labeled], dtype=np.int64)
        self._unlabeled_ends = np.cumsum([len(part) for part in self.unlabeled], dtype=np.int64)
        self.labeled_count = int(self._labeled_ends[-1]) if self.labeled else 0
        self.unlabeled_count = int(self._unlabeled_ends[-1]) if self.unlabeled else 0
        for part in self.labeled:
            _require_target(part, target, options)

    def __getitem__(self, draws: list[Draw]) -> Batch | BadFile:
        try:
            return self._batch(draws)
        finally:
            self.on_read(FileKind.NOTHING, 0)

    def batch_bytes(self, labeled: int, unlabeled: int) -> int:
        """Returns the size in bytes of a micro-batch with these numbers of crops."""
        pixels, of_target = math.prod(self.crop_hw), np.dtype(TARGETS[self.target].dtype).itemsize
        of_label = 0 if self.pseudo_labels is None else np.dtype(np.float32).itemsize
        of_mask = np.dtype(np.bool_).itemsize
        label_pixels = USUAL_LABEL_PIXELS if self.options.keeps_label_size else pixels
        of_labeled = 3 * pixels + label_pixels * (of_target + of_mask)
        return labeled * of_labeled + unlabeled * pixels * (3 + of_label)

    def name_of(self, kind: FileKind, index: int) -> str:
        """Returns the name of a file that is being read, for messages."""
        if kind in (FileKind.IMAGE, FileKind.LABELS):
            part, index = _locate(self._labeled_ends, index)
            return self.labeled[part].files(index)[kind == FileKind.LABELS]
        part, index = _locate(self._unlabeled_ends, index)
        return ("the pseudo-label of " * (kind == FileKind.PSEUDO_LABEL)) + self.unlabeled[part].name(index)

    def _batch(self, draws: list[Draw]) -> Batch | BadFile:
        labeled = list[LabeledCrop]()
        unlabeled, places = list[tuple[NDArray, NDArray | None]](), list[int]()
        issues = list[ImageIssue]()
        for draw in draws:
            try:
                if draw.labeled:
                    labeled.append(self._labeled_crop(draw))
                else:
                    unlabeled.append(self._unlabeled_crop(draw, issues))
                    places.append(draw.place)
            except Flat as error:
                issues.append(ImageIssue(SKIPPED, "flat depth", str(error), draw.labeled))
            except Unusable as error:
                if self.unreadable == "error":
                    return BadFile(f"{error} (data.unreadable=skip leaves such images out)")
                issues.append(ImageIssue(SKIPPED, error.reason, str(error), draw.labeled))
            except ValueError as error:
                return BadFile(str(error))
        image_shape = (3, *self.crop_hw)
        label_hw = largest([each.label_hw for each in labeled]) if labeled else self.crop_hw
        pseudo = [label for _, label in unlabeled if label is not None]  # of all images, or of none
        drawn = max((draw.places for draw in draws if not draw.labeled), default=0)
        return Batch(
            _stack([each.image for each in labeled], image_shape, np.uint8),
            _stack([each.target for each in labeled], label_hw, TARGETS[self.target].dtype),
            _stack([each.mask for each in labeled], label_hw, np.bool_),
            _stack([image for image, _ in unlabeled], image_shape, np.uint8),
            issues,
            None if self.pseudo_labels is None else _stack(pseudo, self.crop_hw, np.float32),
            Share(torch.tensor(places, dtype=torch.int64), drawn),
            label_hw=[each.label_hw for each in labeled] if self.options.keeps_label_size else None,
            domain=_numbers(labeled) if self.options.domains else None,
        )

    def _labeled_crop(self, draw: Draw) -> LabeledCrop:
        part, index = _locate(self._labeled_ends, draw.index)
        data_set, (image_name, label_name) = self.labeled[part], self.labeled[part].files(index)
        stored: bytes | NDArray[np.uint8] | None = None
        with _unusable(lambda: read_header(stored).fault(1, self.convert_images)):
            self.on_read(FileKind.IMAGE, draw.index)
            stored = data_set.stored_image(index)
            upright = getattr(data_set, "upright", True)
            photo = self._decode(stored, image_name, upright)
        what = getattr(data_set, "label_word", "depth")
        with _unusable(lambda: f"unreadable {what}"):
            self.on_read(FileKind.LABELS, draw.index)
            labels = data_set.labels(index)
        with _unusable(lambda: "sizes differ"):
            photo_hw, labels_hw = (photo.height, photo.width), labels.valid.shape
            require_aligned(image_name, stored, photo_hw, label_name, labels_hw, upright, what)
        if TARGETS[self.target].is_relative and is_flat(labels):
            text = "its depth is the same everywhere, or known at too few pixels, which teaches nothing"
            raise Flat(f"{label_name}: {text} about relative depth")
        with _not_too_long(image_name):
            region = self.options.draw(part, photo.height, photo.width, self.crop_hw, draw.seed, labels)
        target, mask = labeled_target(self.target, labels, region, data_set, photo.width, self.options, part)
        return LabeledCrop(_chw(region.of_image(photo)), target, mask, self.options.domain_of(part))

    def _unlabeled_crop(
        self, draw: Draw, issues: list[ImageIssue]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        """Returns image [3 h w] and stored pseudo-label [h w] of a crop; notes a conversion in `issues`."""
        part, index = _locate(self._unlabeled_ends, draw.index)
        data_set, header = self.unlabeled[part], ImageHeader()
        with _unusable(lambda: header.fault(self.min_side, self.convert_images)):
            self.on_read(FileKind.UNLABELED, draw.index)
            stored = data_set.stored_image(index)
            header = read_header(stored)
            header.require_side(self.min_side, data_set.name(index))
            photo = self._decode(stored, data_set.name(index))
        if header.conversion:
            issues.append(ImageIssue(CONVERTED, header.conversion, data_set.name(index), labeled=False))
        with _not_too_long(data_set.name(index)):
            crop = draw_crop(photo.height, photo.width, self.crop_hw, draw.seed)
        if self.pseudo_labels is None:
            return _chw(crop.of_image(photo)), None
        self.on_read(FileKind.PSEUDO_LABEL, draw.index)
        disparity = self.pseudo_labels.of_image(part, index, (photo.height, photo.width))
        if disparity is None:
            raise Unusable("without pseudo-label", f"{data_set.name(index)}: has no pseudo-label")
        return _chw(crop.of_image(photo)), crop.of_smooth_map(disparity)

    def _decode(self, stored: bytes | NDArray[np.uint8], name: str, upright: bool = True) -> Photo:
        if isinstance(stored, np.ndarray):
            return Photo(stored, *stored.shape[:2])
        return decode_photo(stored, name, self.convert_images, self._min_hw, upright)


@contextmanager
def _unusable(reason: Callable[[], str]) -> Iterator[None]:
    """Turns a ValueError into `Unusable`.

    A missing package and an unknown unit are not bad files: no image is skipped for them.
    """
    try:
        yield
    except (MissingPackage, UnknownUnit):
        raise
    except NoValidPixel as error:
        raise Unusable("no valid pixel", str(error)) from None
    except ValueError as error:
        raise Unusable(reason(), str(error)) from None


@contextmanager
def _not_too_long(name: str) -> Iterator[None]:
    """Turns a `TooLong` into `Unusable`, which names the image."""
    try:
        yield
    except TooLong as error:
        raise Unusable("too long", f"{name}: {error}") from None


def _require_target(data_set: LabeledSet, target: str, options: LabeledOptions) -> None:
    """Raises ValueError, which names the data set, if its labels cannot become the target."""
    try:
        require_unit(data_set.unit, TARGETS[target].units, target)
        if target == "depth_m":
            options.require_metres(data_set)
    except ValueError as error:
        where = f"{type(data_set).__name__} ({data_set.files(0)[1]}, ...)"
        raise ValueError(f"{where}: {error}: leave this data set out") from None


def _locate(ends: NDArray[np.int64], index: int) -> tuple[int, int]:
    """Returns which data set holds an index of the concatenation, and the index in that data set."""
    part = int(np.searchsorted(ends, index, side="right"))
    return part, index - (int(ends[part - 1]) if part else 0)


def _chw(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[h w 3] -> [3 h w], contiguous."""
    planes = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(image, list(planes))  # a fifth of the time of a transposed copy
    return planes


def _stack(planes: Sequence[NDArray], shape: tuple[int, ...], dtype: DTypeLike) -> Tensor:
    """Returns the planes as one tensor [n *shape], smaller ones padded with 0; empty if there are none."""
    stacked = np.empty((len(planes), *shape), dtype)
    for i, plane in enumerate(planes):
        if plane.shape != shape:  # labels of their own size, smaller than the largest
            stacked[i] = 0
        stacked[i][tuple(slice(side) for side in plane.shape)] = plane
    return torch.from_numpy(stacked)


def _numbers(labeled: Sequence[LabeledCrop]) -> Tensor:
    """Returns the numbers of the domains [l] int64."""
    return torch.tensor([each.domain for each in labeled], dtype=torch.int64)
