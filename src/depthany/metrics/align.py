"""Alignment of a prediction of unknown scale and shift to the ground truth, and its inversion to metres."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depthany.metrics.pieces import float64_pieces

SPACES = ("disparity", "depth", "own")
_MIN_SHARE = 1e-3  # before inversion a map is raised to this share of its largest value
_ROBUST_PIXELS = 64 * 64  # at most, in the robust fit; the number of MoGe
_BISECTIONS = 60
_ROUNDING = 1e-6  # relative difference of values that are one value in float32, at most


@dataclass(frozen=True)
class Fit:
    """Fit of ground truth ~ scale * prediction + shift, in the space of the fit.

    solvable: False where the prediction is constant: scale is 0 and shift the constant that fits best.
    """

    scale: float
    shift: float
    solvable: bool = True


def least_squares(x: NDArray, y: NDArray) -> Fit:
    """Returns the line that minimises Σ (scale·x + shift - y)².

    `align_least_squares` solves the same problem for a batch of masked maps on a GPU. This one works on the
    valid pixels of one image, or of a whole video, in float64 pieces that stay in the cache, so it needs no
    float64 copy of them.

    Args:
        x, y: [n] prediction and ground truth, n > 0, finite.
    """
    x_mean, y_mean = float(x.mean(dtype=np.float64)), float(y.mean(dtype=np.float64))
    variance = covariance = 0.0
    for x_piece, y_piece in float64_pieces(x, y):
        centred = x_piece - x_mean
        variance += float(centred @ centred)
        covariance += float(centred @ (y_piece - y_mean))
    if _is_constant(variance / len(x), x_mean):
        return Fit(0.0, y_mean, solvable=False)
    scale = covariance / variance
    return Fit(scale, y_mean - scale * x_mean)


def median_scaling(x: NDArray, y: NDArray) -> Fit:
    """Returns scale = median(y) / median(x), without shift (Zhou et al. 2017, arXiv 1704.07813).

    Args:
        x, y: [n] prediction and ground truth, n > 0, finite. A median of x that is not above 0 has no scale.
    """
    x_median = float(np.median(x))
    if x_median <= 0:
        return Fit(0.0, float(np.median(y)), solvable=False)
    return Fit(float(np.median(y)) / x_median, 0.0)


def robust_l1(x: NDArray, y: NDArray) -> Fit:
    """Returns the line that minimises Σ |scale·x + shift - y| / y, errors relative to the ground truth.

    Source: MoGe (Wang et al. 2024, arXiv 2410.19115), weight 1/g. Solved exactly on at most 64 x 64 pixels:
    for a given scale the best shift is a weighted median; the remaining function of the scale is convex, and
    bisection finds where its slope changes sign. Departure: MoGe takes the pixels of a 64 x 64 grid over the
    image, this takes every n-th valid pixel.

    Args:
        x, y: [n] prediction and ground truth, n > 0, finite, y above 0.
    """
    x, y = _every_nth(x, y)
    start = least_squares(x, y)
    if not start.solvable:
        return Fit(0.0, _weighted_median(y, 1 / y), solvable=False)
    low = high = start.scale
    step = abs(start.scale) or float(y.std() / x.std()) or 1e-12
    while _slope(x, y, low) > 0:
        low, step = low - step, 2 * step
    while _slope(x, y, high) < 0:
        high, step = high + step, 2 * step
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if _slope(x, y, middle) > 0 else (middle, high)
    scale = (low + high) / 2
    return Fit(scale, _weighted_median(y - scale * x, 1 / y))


class Method(NamedTuple):
    """A row of METHODS: the function that fits, and how many numbers it is free to choose."""

    fit: Callable[[NDArray, NDArray], Fit]
    free: int


METHODS = {
    "least_squares": Method(least_squares, 2),
    "median": Method(median_scaling, 1),
    "robust_l1": Method(robust_l1, 2),
    "none": Method(lambda x, y: Fit(1.0, 0.0), 0),
}


def fit(method: str, x: NDArray, y: NDArray) -> Fit:
    """Returns scale and shift of a prediction over the valid pixels of an image or a sequence.

    Both are always finite. A prediction that swaps near and far has a negative scale, which is not corrected.

    Args:
        method: a name in METHODS.
        x, y: [n] prediction and ground truth in the space of the fit, n > 0, finite; y above 0.
    """
    return METHODS[method].fit(x, y)


def is_degenerate(method: str, y: NDArray) -> bool:
    """Returns whether a ground truth says nothing about a fitted prediction.

    This holds where it is constant up to rounding, so that a constant prediction has error 0; or where it
    has no more pixels than the fit has free parameters (scale, or scale and shift), so that almost any
    prediction has error 0. Metres that are not fitted are never degenerate.

    Args:
        method: a name in METHODS. y: [n] ground truth in the space of the fit, n > 0, finite and above 0.
    """
    free = METHODS[method].free
    return free > 0 and (len(y) <= free or float(y.max()) <= (1 + _ROUNDING) * float(y.min()))


def inversion_floor(prediction: NDArray) -> float:
    """Returns the value to which a map is raised before it is inverted.

    It is 1/1000 of the largest value, or 0 if no value is above 0. A disparity has zeros (the sky), and one
    such pixel inverted would outweigh all others. A share of the largest value does not depend on the scale
    of the map; which share is our choice.

    Args:
        prediction: [h w], finite.
    """
    return _MIN_SHARE * max(float(prediction.max()), 0.0)


def to_space(prediction: NDArray, quantity: str, space: str, floor: float) -> NDArray:
    """Returns the prediction in the space of the fit: unchanged, or inverted after the floor.

    A disparity known up to scale and shift does not become a depth known up to scale and shift when it is
    inverted. space=depth nevertheless does what a user of depth maps would do.

    Args:
        prediction: any shape. quantity, space: disparity or depth. floor: `inversion_floor` of the image.
    """
    if quantity == space:
        return prediction
    if floor == 0:
        return np.zeros_like(prediction)  # no value is above 0: a constant, which the fit reports
    return 1 / np.maximum(prediction, np.float32(floor))


def to_depth_m(x: NDArray, fitted: Fit, space: str, range_m: tuple[float, float]) -> NDArray[np.float64]:
    """Returns the depth in metres of a fitted prediction, clipped to a range.

    In disparity it is clipped to [1/farthest, 1/nearest] before the inversion, so a value at or below zero
    becomes the farthest depth. Without that, one such pixel can bring AbsRel to 1000.

    Args:
        x: prediction in the space of the fit, any shape. range_m: nearest and farthest depth in m.
    """
    nearest, farthest = range_m
    aligned = fitted.scale * x.astype(np.float64) + fitted.shift
    if space == "depth":
        return np.clip(aligned, nearest, farthest)
    return 1 / np.clip(aligned, 1 / farthest, 1 / nearest)


def _is_constant(variance: float, mean: float) -> bool:
    """Returns whether a variance is that of a constant, up to the rounding of its mean."""
    return variance <= (1e-12 * abs(mean)) ** 2


def _every_nth(x: NDArray, y: NDArray) -> tuple[NDArray, NDArray]:
    """Returns at most _ROBUST_PIXELS of the pixels, evenly spaced, in float64."""
    chosen = np.linspace(0, len(x) - 1, min(len(x), _ROBUST_PIXELS)).astype(np.int64)
    return x[chosen].astype(np.float64), y[chosen].astype(np.float64)


def _weighted_median(values: NDArray, weights: NDArray) -> float:
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weights[order])
    return float(values[order[np.searchsorted(total, total[-1] / 2)]])


def _slope(x: NDArray, y: NDArray, scale: float) -> float:
    """Returns a subgradient, at this scale, of the minimum over the shift of Σ |scale·x + shift - y| / y."""
    residual, weight = scale * x - y, 1 / y
    residual = residual + _weighted_median(-residual, weight)
    sign = np.sign(residual)
    at_zero = residual == 0
    rest = float(np.sum(weight * sign))  # at the best shift the pixels on the line balance the others
    sign[at_zero] = -rest / float(np.sum(weight[at_zero]))
    return float(np.sum(weight * sign * x))


def align_least_squares(prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns scale and shift per image that minimise Σ (scale·prediction + shift - target)² over the mask.

    The batched form of `least_squares`, on the device of its arguments; prediction at several scales uses
    it. Source: Ranftl et al. 2020 (arXiv 1907.01341). Depth Anything's authors state that its output is
    affine in disparity, not in depth. Solved about the means in float64, since the sums of squares of
    a map of 10⁵ pixels cancel in float32.

    Args:
        prediction: [b h w] disparity of any scale and shift.
        target: [b h w] disparity, 1/m; any value, even NaN, where the mask is False.
        mask: [b h w] bool, True where the ground truth is known.

    Returns:
        scale, shift: [b] float64.
        solvable: [b] bool, False where the mask is empty (scale and shift are 0) or the prediction is
            constant on it (scale is 0, shift the mean of the target).
        A finite prediction never has NaN. A prediction that swaps near and far has a negative scale, which is
        not corrected.

    Raises:
        ValueError: the shapes differ, or the mask is not bool.
    """
    if not prediction.shape == target.shape == mask.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"prediction is {tuple(prediction.shape)}, target {tuple(target.shape)}, mask "
            f"{tuple(mask.shape)} {mask.dtype}; expected one shape [b h w] for all three and a bool mask"
        )
    mask = mask.flatten(1)  # [b n]
    prediction = torch.where(mask, prediction.flatten(1).double(), 0)  # [b n]
    target = torch.where(mask, target.flatten(1).double(), 0)  # [b n]
    pixels = mask.sum(1).clamp(min=1)  # [b]

    prediction_mean, target_mean = prediction.sum(1) / pixels, target.sum(1) / pixels  # [b]
    centred = torch.where(mask, prediction - prediction_mean[:, None], 0)  # [b n]
    variance = centred.square().sum(1) / pixels  # [b]
    covariance = (centred * target).sum(1) / pixels  # [b]
    rounding = 1e-12 * prediction_mean.abs()  # the computed mean of a constant is off by less than this
    solvable = ~(variance <= rounding.square())
    scale = torch.where(solvable, covariance / torch.where(solvable, variance, 1), 0)
    return scale, target_mean - scale * prediction_mean, solvable
