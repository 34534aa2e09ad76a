"""What one image of a data set is like, and what is wrong with it."""

import copy
import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from depthany.checking.histogram import DepthHistogram
from depthany.data.images import decode_image
from depthany.data.labeled import Decoded, Pair, PairedDepth
from depthany.data.samples import NoValidPixel
from depthany.system.packages import reason

UNREADABLE_IMAGE, UNREADABLE_DEPTH = "unreadable image", "unreadable depth"
NO_VALID_PIXEL, SIZES_DIFFER, NO_PARTNER = "no valid pixel", "sizes differ", "no partner"
FEW_VALID, CONSTANT, NEGATIVE, BLANK = "few valid pixels", "constant depth", "negative depth", "blank image"
# Training stops at the first kind, unless data.unreadable=skip leaves such images out.
ERRORS = (NO_PARTNER, UNREADABLE_IMAGE, UNREADABLE_DEPTH, NO_VALID_PIXEL, SIZES_DIFFER)
WARNINGS = (FEW_VALID, CONSTANT, NEGATIVE, BLANK)
GRAY = "gray image"
# Why a pixel has no depth; the first reason that holds counts.
INVALID = ("not finite", "negative", "zero", "masked", "too near", "too far")


@dataclass(frozen=True)
class Problem:
    """`kind` is one of ERRORS or WARNINGS; `reason` is one line on the file at `path`."""

    kind: str
    path: str
    reason: str


@dataclass(frozen=True)
class Finding:
    """What was seen of one image. Shares are of its pixels.

    size: width and height; None where the image cannot be read.
    mode: how the image is stored, in Pillow's words (RGB, L, CMYK); None where the set holds pixels.
    valid, sky: share of pixels with a known disparity, sky among them, and share of sky; None where there is
        no depth, or none that can be read.
    invalid: share of pixels without depth by reason (INVALID), where the set tells.
    """

    name: str
    problems: tuple[Problem, ...] = ()
    size: tuple[int, int] | None = None
    mode: str | None = None
    is_gray: bool = False
    valid: float | None = None
    sky: float | None = None
    invalid: dict[str, float] = field(default_factory=dict)


@dataclass
class _Found:
    """A `Finding` in the making."""

    problems: list[Problem] = field(default_factory=list)
    traits: dict[str, Any] = field(default_factory=dict)

    def add(self, kind: str, path: str, reason: str) -> None:
        self.problems.append(Problem(kind, path, reason))


class Inspector:
    """Reads the images of a set as training does, step by step, and adds their depth to a histogram.

    Args:
        dataset: a labeled or unlabeled set.
        convert_images: as in training, accept gray, RGBA, CMYK and 16-bit images.
        min_valid_share: an image with less valid pixels is a warning.
    """

    def __init__(self, dataset: Any, convert_images: bool, min_valid_share: float) -> None:
        self.dataset, self.convert_images, self.min_valid_share = dataset, convert_images, min_valid_share
        self.in_disparity = bool(getattr(dataset, "in_disparity", False))
        self.histogram = DepthHistogram()
        self.decoded: Decoded | None = None
        if isinstance(dataset, PairedDepth):
            self.dataset = copy.copy(dataset)
            self._decode = self.dataset.decode
            self.dataset.__dict__["decode"] = self._overheard  # `labels` calls it: no file is decoded twice

    def restart(self) -> None:
        """Begin a new histogram."""
        self.histogram = DepthHistogram()

    def _overheard(self, pair: Pair) -> Decoded:
        self.decoded = self._decode(pair)
        return self.decoded

    def inspect(self, index: int) -> Finding:
        """Read image `index`, and its depth if the set has any; what goes wrong becomes a problem."""
        self.decoded, found = None, _Found()
        image = self._image(index, found)
        if hasattr(self.dataset, "labels"):
            mask_hw = self._depth(index, found)
            if image is not None and mask_hw is not None and mask_hw != image.shape[:2]:
                told = f"depth is {mask_hw[1]}x{mask_hw[0]}, its image {image.shape[1]}x{image.shape[0]}"
                found.add(SIZES_DIFFER, self._files(index)[1], told)
        return Finding(self.dataset.name(index), tuple(found.problems), **found.traits)

    def _files(self, index: int) -> tuple[str, str]:
        """Files of the image and its depth."""
        labeled = hasattr(self.dataset, "files")
        return self.dataset.files(index) if labeled else (self.dataset.name(index),) * 2

    def _image(self, index: int, found: "_Found") -> NDArray[np.uint8] | None:
        """The image [h w 3], where it can be read."""
        path = self._files(index)[0]
        try:
            stored = self.dataset.stored_image(index)
            is_file = isinstance(stored, bytes)
            image = decode_image(stored, path, self.convert_images) if is_file else stored
        except Exception as error:  # a reader's defect must not hide what is wrong with the other files
            found.add(UNREADABLE_IMAGE, path, _told(error, path))
            return None
        found.traits["size"] = (image.shape[1], image.shape[0])
        found.traits["mode"] = Image.open(io.BytesIO(stored)).mode if is_file else None
        if _holds(image, lambda pixels: pixels == image[0, 0]):
            found.add(BLANK, path, f"one colour, {image[0, 0].tolist()}")
        else:
            found.traits["is_gray"] = _holds(image, lambda pixels: pixels == pixels[..., :1])
        return image

    def _depth(self, index: int, found: "_Found") -> tuple[int, ...] | None:
        """Height and width of the depth, where it can be read."""
        path = self._files(index)[1]
        try:
            labels = self.dataset.labels(index)
            disparity, mask = labels.disparity, labels.mask
        except Exception as error:
            without_any = isinstance(error, NoValidPixel)
            found.add(NO_VALID_PIXEL if without_any else UNREADABLE_DEPTH, path, _told(error, path))
            if not without_any or self.decoded is None:
                return None
            mask = np.zeros(self.decoded.values.shape, bool)
            disparity = np.zeros(mask.shape, np.float32)
        sky, reasons, valid = self._sky(disparity, mask), self._reasons(mask), float(mask.mean())
        found.traits |= {"valid": valid, "sky": float(sky.mean()), "invalid": reasons}
        self._measured(disparity, mask & ~sky, path, found)
        if "negative" in reasons:
            found.add(NEGATIVE, path, f"{reasons['negative']:.2%} of the pixels are below 0")
        if 0 < valid < self.min_valid_share:
            found.add(FEW_VALID, path, f"{valid:.2%} of the pixels are valid")
        return mask.shape

    def _sky(self, disparity: NDArray, mask: NDArray) -> NDArray[np.bool_]:
        """[h w] bool. Metres have an inverse above 0, so that 0 is sky; a measured disparity can be 0, and
        does not count as sky unless the set or masks beside it know sky.
        """
        if self.decoded is not None and self.decoded.sky is not None and self.in_disparity:
            return mask & self.decoded.sky
        knows_sky = not self.in_disparity or getattr(self.dataset, "sky_masks", None) is not None
        return mask & (disparity == 0) & knows_sky

    def _measured(self, disparity: NDArray, measured: NDArray, path: str, found: "_Found") -> None:
        """Add the depth [h w] of the measured pixels, in metres where the set has any, to the histogram."""
        values = disparity[measured]
        if not values.size:
            return
        if values.size > 1 and values.min() == values.max():
            found.add(CONSTANT, path, f"the same at all {values.size} measured pixels")
        if not self.in_disparity:
            np.reciprocal(values, out=values)
        self.histogram.add(values)

    def _reasons(self, mask: NDArray) -> dict[str, float]:
        """Share of the pixels off the mask by reason."""
        if self.decoded is None or mask.all():
            return {}
        values, valid = self.decoded.values[~mask], self.decoded.valid[~mask]
        metric = not self.in_disparity
        near, far = (self.dataset.min_depth, self.dataset.max_depth) if metric else (0.0, np.inf)
        tests = (~np.isfinite(values), values < 0, values == 0, ~valid, values < near, values > far)
        left, shares = np.ones(values.shape, bool), dict[str, float]()
        for name, test in zip(INVALID, tests, strict=True):
            if count := int((left & test).sum()):
                shares[name] = count / mask.size
            left &= ~test
        return shares


def _holds(image: NDArray[np.uint8], test: Any) -> bool:
    """Whether `test` holds at all pixels; most images fail at a few of them already."""
    return bool(test(image[::16, ::16]).all()) and bool(test(image).all())


def _told(error: Exception, path: str) -> str:
    """One line without the path and, unless it is a message of ours, with the kind of error."""
    text = " ".join(str(error).split())
    if not isinstance(error, ValueError):
        text = f"{type(error).__name__}: {reason(error)}"
    file = path.rpartition(" (")[0] or path
    return text.removeprefix(f"{path}: ").removeprefix(f"{file}: ")
