"""Look at one image of a data set, and find what is wrong with it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depthany.data.histogram import DepthHistogram
from depthany.data.image_formats import open_image
from depthany.data.images import decode_image
from depthany.data.labeled import Decoded, PairedDepth
from depthany.data.left_out import read_header
from depthany.data.orientation import doubt, is_confirmed, orientation_of, size_hint
from depthany.data.plausible import describe_resize, known_pixels
from depthany.data.samples import NoValidPixel, UnknownUnit
from depthany.data.targets import Labels, is_flat
from depthany.system.packages import reason

UNREADABLE_IMAGE, UNREADABLE_DEPTH = "unreadable image", "unreadable depth"
NO_VALID_PIXEL, SIZES_DIFFER, NO_PARTNER = "no valid pixel", "sizes differ", "no partner"
UNKNOWN_UNIT = "unknown unit"
FEW_VALID, CONSTANT, NEGATIVE, BLANK = "few valid pixels", "constant depth", "negative depth", "blank image"
TURNED, BROKEN_ARCHIVE = "turned by EXIF", "archive ends early"
# Training stops at these unless data.unreadable=skip leaves such images out, or they mean that images are
# lost, as at the end of a broken archive. The others are warnings.
ERRORS = (
    NO_PARTNER,
    UNREADABLE_IMAGE,
    UNREADABLE_DEPTH,
    UNKNOWN_UNIT,
    NO_VALID_PIXEL,
    SIZES_DIFFER,
    BROKEN_ARCHIVE,
)
GRAY = "gray image"
# Why a pixel is not valid; the first reason that holds counts.
INVALID = ("not finite", "negative", "zero", "masked", "too near", "too far")


@dataclass(frozen=True)
class Problem:
    """An error (one of ERRORS) or a warning. `reason` is one line about the file at `path`."""

    kind: str
    path: str
    reason: str


@dataclass(frozen=True)
class Finding:
    """What was found in one image. Shares are of its pixels.

    size: width and height; None if the image cannot be read.
    mode: Pillow's name of the stored colour mode (RGB, L, CMYK); None if the data set holds pixels.
    valid: share of pixels that are valid or sky; None if there are no labels, or they cannot be read.
    sky: share of sky; None as `valid`.
    invalid: share of the other pixels by reason (INVALID), if known.
    label_type: type of the stored labels, such as uint16; empty if the reader does not say.
    is_flat: whether the labels say nothing about relative depth, see `targets.is_flat`.
    resized: sizes of labels that were resized to their image, such as `320x240 to 640x480`; empty if not.
    """

    name: str
    problems: tuple[Problem, ...] = ()
    size: tuple[int, int] | None = None
    mode: str | None = None
    is_gray: bool = False
    valid: float | None = None
    sky: float | None = None
    invalid: dict[str, float] = field(default_factory=dict)
    label_type: str = ""
    is_flat: bool = False
    resized: str = ""


@dataclass
class _Found:
    """Collects what becomes a `Finding`."""

    problems: list[Problem] = field(default_factory=list)
    traits: dict[str, Any] = field(default_factory=dict)
    orientation: int = 1  # EXIF

    def add(self, kind: str, path: str, reason: str) -> None:
        self.problems.append(Problem(kind, path, reason))


class Inspector:
    """Reads the images of a data set as training does, and counts their depth in histograms.

    Args:
        dataset: a labeled or unlabeled data set.
        convert_images: accept gray, RGBA, CMYK and 16-bit images, as training would.
        min_valid_share: an image with a smaller share of valid pixels is a warning.
        min_side: an unlabeled image with a smaller side, in pixels, is unreadable, as in training.

    Attributes:
        histogram: histogram of the valid values. outside: that of the known values out of the set's range.
    """

    def __init__(self, dataset: Any, convert_images: bool, min_valid_share: float, min_side: int = 1) -> None:
        self.dataset, self.convert_images, self.min_valid_share = dataset, convert_images, min_valid_share
        self.min_side = 1 if hasattr(dataset, "labels") else min_side
        self.restart()

    def restart(self) -> None:
        """Begins new histograms."""
        self.histogram, self.outside = DepthHistogram(), DepthHistogram()

    def inspect(self, index: int) -> Finding:
        """Reads image `index`, and its labels if there are any. Everything wrong becomes a `Problem`."""
        found = _Found()
        image = self._image(index, found)
        if hasattr(self.dataset, "labels"):
            label_hw = self._labels(index, found)
            if image is not None and label_hw is not None:
                self._compare(index, image.shape[:2], label_hw, found)
        return Finding(self.dataset.name(index), tuple(found.problems), **found.traits)

    def _files(self, index: int) -> tuple[str, str]:
        """Returns the paths of the image and its labels."""
        labeled = hasattr(self.dataset, "files")
        return self.dataset.files(index) if labeled else (self.dataset.name(index),) * 2

    def _image(self, index: int, found: _Found) -> NDArray[np.uint8] | None:
        """Returns the image [h w 3] uint8; None if it cannot be read."""
        path = self._files(index)[0]
        try:
            stored = self.dataset.stored_image(index)
            read_header(stored).require_side(self.min_side, path)
            is_file = isinstance(stored, bytes)
            upright = getattr(self.dataset, "upright", True)
            image = decode_image(stored, path, self.convert_images, upright) if is_file else stored
        except Exception as error:  # a defect in one reader must not hide the problems of other files
            found.add(UNREADABLE_IMAGE, path, _one_line(error, path))
            return None
        found.traits["size"] = (image.shape[1], image.shape[0])
        found.traits["mode"] = open_image(stored).mode if is_file else None
        found.orientation = orientation_of(stored)
        if _holds(image, lambda pixels: pixels == image[0, 0]):
            found.add(BLANK, path, f"one colour, {image[0, 0].tolist()}")
        else:
            found.traits["is_gray"] = _holds(image, lambda pixels: pixels == pixels[..., :1])
        return image

    def _compare(
        self, index: int, image_hw: tuple[int, ...], label_hw: tuple[int, ...], found: _Found
    ) -> None:
        """Compares the sizes of image and labels; tests whether the labels can belong to the turned image."""
        image, labels = self._files(index)
        if label_hw != image_hw:
            text = f"depth is {label_hw[1]}x{label_hw[0]}, its image {image_hw[1]}x{image_hw[0]}"
            upright = getattr(self.dataset, "upright", True)
            hint = size_hint(found.orientation, image_hw, label_hw, upright)
            if not hint and getattr(self.dataset, "resize_depth", "no such setting") is None:
                hint = "; resize_depth=nearest resizes it"
            found.add(SIZES_DIFFER, labels, text + hint)
        elif (why := doubt(found.orientation, image_hw)) and not is_confirmed(self.dataset):
            found.add(TURNED, image, why)

    def _labels(self, index: int, found: _Found) -> tuple[int, ...] | None:
        """Looks at the labels and returns their height and width; None if they cannot be read."""
        path = self._files(index)[1]
        decoded: Decoded | None = None
        try:
            if isinstance(self.dataset, PairedDepth):
                pair = self.dataset.pairs[index]
                decoded = self.dataset.decode(pair)
                labels = self.dataset.labels_of(pair, decoded)
            else:
                labels = self.dataset.labels(index)
        except Exception as error:
            found.add(_kind_of(error), path, _one_line(error, path))
            if not isinstance(error, NoValidPixel) or decoded is None:
                return None
            labels = Labels(decoded.values, self.dataset.unit, np.zeros(decoded.values.shape, bool))
        self._count(labels, path, found)
        if decoded is not None:
            self._count_outside(decoded, labels, found)
        share = float(labels.mask.mean())
        sky = 0.0 if labels.sky is None else float(labels.sky.mean())
        reasons = {} if decoded is None else self._reasons(decoded, labels.mask)
        found.traits |= {"valid": share, "sky": sky, "invalid": reasons}
        if "negative" in reasons:
            found.add(NEGATIVE, path, f"{reasons['negative']:.2%} of the pixels are below 0")
        if 0 < share < self.min_valid_share:
            found.add(FEW_VALID, path, f"{share:.2%} of the pixels are valid")
        found.traits["is_flat"] = share > 0 and self.dataset.unit != "class" and is_flat(labels)
        return labels.valid.shape

    def _count(self, labels: Labels, path: str, found: _Found) -> None:
        """Adds the valid values to the histogram."""
        values = labels.values[labels.valid]
        is_class = labels.unit == "class"  # an image of one class is no fault
        if not is_class and values.size > 1 and values.min() == values.max():
            found.add(CONSTANT, path, f"the same at all {values.size} measured pixels")
        self.histogram.add(values)

    def _count_outside(self, decoded: Decoded, labels: Labels, found: _Found) -> None:
        """Adds the known values that are out of range to their histogram, and notes type and size."""
        self.outside.add(decoded.values[known_pixels(decoded, labels.mask)])
        found.traits["label_type"] = decoded.stored_as
        if decoded.resized_from is not None:
            found.traits["resized"] = describe_resize(decoded.resized_from, decoded.values.shape)

    def _reasons(self, decoded: Decoded, mask: NDArray[np.bool_]) -> dict[str, float]:
        """Returns the share of the pixels off the mask [h w], by reason."""
        values, valid = decoded.values[~mask], decoded.valid[~mask]
        low, high = self.dataset.valid_range()
        tests = (~np.isfinite(values), values < 0, values == 0, ~valid, values < low, values > high)
        left, shares = np.ones(values.shape, bool), dict[str, float]()
        for name, test in zip(INVALID, tests, strict=True):
            if count := int((left & test).sum()):
                shares[name] = count / mask.size
            left &= ~test
        return shares


def _holds(image: NDArray[np.uint8], test: Any) -> bool:
    """Returns whether `test` holds at all pixels. Tests a few first, where most images fail already."""
    return bool(test(image[::16, ::16]).all()) and bool(test(image).all())


def _kind_of(error: Exception) -> str:
    """Returns the kind of problem for an error about labels."""
    if isinstance(error, NoValidPixel):
        return NO_VALID_PIXEL
    return UNKNOWN_UNIT if isinstance(error, UnknownUnit) else UNREADABLE_DEPTH


def _one_line(error: Exception, path: str) -> str:
    """Returns the message of an error without the path; adds the type of an error that is not ours."""
    text = " ".join(str(error).split())
    if not isinstance(error, ValueError):
        text = f"{type(error).__name__}: {reason(error)}"
    file = path.rpartition(" (")[0] or path
    return text.removeprefix(f"{path}: ").removeprefix(f"{file}: ")
