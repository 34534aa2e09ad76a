"""The labels of an image in the unit of its data set, and the targets that a stage can learn from them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import DTypeLike, NDArray

from depthany.data.transforms import Region
from depthany.system.choices import require_choice

LEAST_KNOWN = 3  # pixels, in a map of unknown scale and shift
_ROUNDING = 1e-6  # relative difference of values that are one value in float32, at most
Unit = Literal["m", "disparity", "class"]
UNITS: dict[Unit, str] = {  # name -> what it is, for messages
    "m": "depth in metres",
    "disparity": "disparity of unknown scale",
    "class": "class numbers",
}


@dataclass(frozen=True)
class Labels:
    """What a data set knows of the pixels of one image.

    values: [h w] float32 in `unit`. Meaningless, perhaps NaN, where `valid` is False.
    unit: "m", depth in metres; "disparity", inverse depth of unknown scale; "class", class numbers.
    valid: [h w] bool, True where the value is known. It is False in the sky.
    sky: [h w] bool, True where the image shows the sky, which is infinitely far. None if the data set does
        not know.

    Raises:
        ValueError: the unit is unknown, or a plane has another type or shape.
    """

    values: NDArray[np.float32]
    unit: Unit
    valid: NDArray[np.bool_]
    sky: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        require_choice("unit of labels", self.unit, UNITS)
        masks = [self.valid] if self.sky is None else [self.valid, self.sky]
        if self.values.dtype != np.float32 or any(mask.dtype != np.bool_ for mask in masks):
            found = ", ".join(str(plane.dtype) for plane in (self.values, *masks))
            raise ValueError(f"labels of type {found}: expected float32 values, and bool for valid and sky")
        if any(mask.shape != self.values.shape for mask in masks):
            found = ", ".join(str(plane.shape) for plane in (self.values, *masks))
            raise ValueError(f"labels of shape {found}: expected one shape [h w]")

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """[h w] bool, True where the disparity is known: valid pixels and sky."""
        return self.valid if self.sky is None else self.valid | self.sky

    @cached_property
    def disparity(self) -> NDArray[np.float32]:
        """[h w] float32: 1/m where the unit is metres, else as it is; 0 in the sky and off the mask.

        Raises:
            ValueError: the labels are classes.
        """
        require_unit(self.unit, ("m", "disparity"), "disparity")
        with np.errstate(all="ignore"):  # 1/0 and 1/NaN of pixels that are not valid
            inverse = 1.0 / self.values if self.unit == "m" else self.values
        known = np.ascontiguousarray(self.valid).view(np.uint8)
        return cv2.copyTo(inverse, known)  # type: ignore[return-value]

    def map(self, change: Callable[[NDArray], NDArray]) -> "Labels":
        """Returns the labels with every plane [h w] changed by `change`, such as a crop."""
        sky = None if self.sky is None else change(self.sky)
        return Labels(change(self.values), self.unit, change(self.valid), sky)


def disparity01(labels: Labels, crop: Region) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Makes disparity in [0, 1] from metres or disparity (Depth Anything V1, section 3.1).

    The smallest and largest valid disparity of the whole map become 0 and 1. The paper does not say whether
    this is done before or after the crop; the affine-invariant loss removes scale and shift either way.

    Args:
        labels: labels of the whole image. Sky is valid, with disparity 0.
        crop: what is cut from it.

    Returns:
        Target [height width] float32, 0 off the mask, and mask [height width] bool.
    """
    low, high = disparity_range(labels)
    cropped = labels.map(crop.of_map)
    return normalise_disparity(cropped.disparity, cropped.mask, low, high), cropped.mask


def disparity_range(labels: Labels) -> tuple[np.float32, np.float32]:
    """Returns the smallest and the largest valid disparity of a map with at least one valid pixel."""
    known = np.ascontiguousarray(labels.valid).view(np.uint8)
    low, high, _, _ = cv2.minMaxLoc(labels.values, known)  # five times as fast as values[valid].min()
    if labels.unit == "m":  # dividing two numbers is cheaper than dividing the map
        low, high = np.float32(1) / np.float32(high), np.float32(1) / np.float32(low)
    has_sky = labels.sky is not None and bool(labels.sky.any())
    return np.float32(0 if has_sky else low), np.float32(high)


def normalise_disparity(
    disparity: NDArray[np.float32], mask: NDArray[np.bool_], low: np.float32, high: np.float32
) -> NDArray[np.float32]:
    """Returns disparity [h w] scaled so that `low` becomes 0 and `high` 1; 0 off the mask [h w]."""
    scaled = (disparity - low) / max(float(high - low), 1e-12)
    return np.where(mask, scaled, np.float32(0))


def is_flat(labels: Labels) -> bool:
    """Returns whether labels say nothing about relative depth: with few pixels known, or all at one value.

    Two points of a map become any other two by a scale and a shift. Sky is a value of its own.
    """
    if np.count_nonzero(labels.mask) < LEAST_KNOWN or not labels.valid.any():
        return True
    low, high = disparity_range(labels)
    return bool(high <= low * (1 + _ROUNDING))


def depth_m(labels: Labels, crop: Region) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Makes depth in metres. Sky and depth outside of the data set's range are invalid.

    Args:
        labels: labels of the whole image, in metres.
        crop: what is cut from it.

    Returns:
        Target [height width] float32, 0 off the mask, and mask [height width] bool.
    """
    cropped = labels.map(crop.of_map)
    return np.where(cropped.valid, cropped.values, np.float32(0)), cropped.valid


def within_m(
    depth_m: NDArray[np.float32], mask: NDArray[np.bool_], near_m: float, far_m: float
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Returns depth_m and mask [h w] of what is strictly between near_m and far_m, as in ZoeDepth."""
    within = mask & (depth_m > near_m) & (depth_m < far_m)
    return np.where(within, depth_m, np.float32(0)), within


def classes(labels: Labels, crop: Region) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Makes class numbers, for cross-entropy.

    Args:
        labels: labels of the whole image, of unit "class".
        crop: what is cut from it.

    Returns:
        Target [height width] int64, 0 off the mask, and mask [height width] bool, False where a pixel is to
        be ignored.
    """
    cropped = labels.map(crop.of_map)
    return np.where(cropped.valid, cropped.values, 0).astype(np.int64), cropped.valid


class Target(NamedTuple):
    """A row of `TARGETS`.

    make: takes the labels of a whole image and a `Region` of it, such as a crop; returns target and mask,
        both [height width].
    dtype: type of the target.
    units: units of the labels from which it can be made.
    is_relative: its scale and shift mean nothing, so that flat labels (see `is_flat`) teach nothing.
    """

    make: Callable[[Labels, Any], tuple[NDArray, NDArray[np.bool_]]]
    dtype: DTypeLike
    units: tuple[Unit, ...]
    is_relative: bool = False


TARGETS = {
    "disparity01": Target(disparity01, np.float32, ("m", "disparity"), is_relative=True),
    "depth_m": Target(depth_m, np.float32, ("m",)),
    "classes": Target(classes, np.int64, ("class",)),
}


def make_target(name: str, labels: Labels, crop: Region) -> tuple[NDArray, NDArray[np.bool_]]:
    """Returns target and mask, both [height width], of a crop; see the function of that name in `TARGETS`.

    Raises:
        ValueError: the labels are in a unit from which it cannot be made.
    """
    require_unit(labels.unit, TARGETS[name].units, name)
    return TARGETS[name].make(labels, crop)


def require_metres(dataset: Any, who: str) -> None:
    """Raises ValueError, which begins with `who`, if the labels of a data set are not depth in metres.

    The shift of relative disparity is unknown, so 1 / disparity is not depth, and its scores mean nothing.
    """
    unit: Unit = getattr(dataset, "unit", "m")
    if unit != "m":
        raise ValueError(
            f"{who}: its labels are {UNITS[unit]}, but predictions are scored as depth in metres: use "
            "such labels for training only, and score on a set with depth"
        )


def require_unit(unit: Unit, wanted: tuple[Unit, ...], target: str) -> None:
    """Raises ValueError if labels of `unit` cannot become `target`, which is made from the `wanted` units."""
    if unit not in wanted:
        needed = " or ".join(UNITS[each] for each in wanted)
        raise ValueError(f"{UNITS[unit]} cannot become {target}, which is made from {needed}")
