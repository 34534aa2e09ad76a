"""From a prediction of unknown scale and shift to metres: in disparity or depth, by several methods."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SPACES = ("disparity", "depth", "own")
_CHUNK = 1 << 15  # pixels whose float64 intermediates stay in the cache
_FLOOR = 1e-3  # a map is inverted no nearer to 0 than this share of its largest value
_SAMPLE = 64 * 64  # pixels for the robust fits, the number of MoGe
_BISECTIONS = 60
_TRIALS, _TOLERANCE = 500, 0.1  # of RANSAC: lines tried, and how far off, as a share of the truth, is good


@dataclass(frozen=True)
class Fit:
    """truth ~ scale * prediction + shift, in the space of the fit.

    solvable: False where the prediction is constant (scale is 0, shift a constant that fits best).
    """

    scale: float
    shift: float
    solvable: bool = True


def least_squares(x: NDArray, y: NDArray, name: str = "") -> Fit:
    """The line that minimises Σ (scale·x + shift - y)², as `align_least_squares` but over [n] valid pixels.

    About the means, in float64 pieces, so that a whole video of float32 pixels needs no copy of itself.
    """
    x_mean, y_mean = float(x.mean(dtype=np.float64)), float(y.mean(dtype=np.float64))
    variance = covariance = 0.0
    for start in range(0, len(x), _CHUNK):
        centred = x[start : start + _CHUNK].astype(np.float64) - x_mean
        variance += float(centred @ centred)
        covariance += float(centred @ (y[start : start + _CHUNK].astype(np.float64) - y_mean))
    if is_constant(variance / len(x), x_mean):
        return Fit(0.0, y_mean, solvable=False)
    scale = covariance / variance
    return Fit(scale, y_mean - scale * x_mean)


def median_scaling(x: NDArray, y: NDArray, name: str = "") -> Fit:
    """scale = median(y) / median(x), no shift (Zhou et al. 2017, arXiv 1704.07813)."""
    middle = float(np.median(x))
    if middle <= 0:
        return Fit(0.0, float(np.median(y)), solvable=False)
    return Fit(float(np.median(y)) / middle, 0.0)


def robust_l1(x: NDArray, y: NDArray, name: str = "") -> Fit:
    """The line that minimises Σ |scale·x + shift - y| / y: errors as a share of the truth, none squared.

    Source: MoGe (Wang et al. 2024, arXiv 2410.19115), weight 1/g. Solved exactly, on at most 64 x 64 of the
    pixels: for a given scale the best shift is a weighted median, what is left is convex in the scale, and
    its slope is bisected. Departure: MoGe takes the pixels of a 64 x 64 grid over the image, this takes every
    n-th valid one.
    """
    x, y = _thinned(x, y)
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


def ransac(x: NDArray, y: NDArray, name: str = "") -> Fit:
    """Least squares over the pixels that the best of 500 lines through two pixels explains to 10 %.

    None of the published protocols of relative depth uses it, and the numbers are a choice of ours.

    Args:
        name: of the image or sequence; the draws follow from it, and from nothing else.
    """
    draw = np.random.default_rng(zlib.crc32(name.encode()))
    some_x, some_y = _thinned(x, y)
    first, second = draw.integers(len(some_x), size=(2, _TRIALS))
    usable = some_x[first] != some_x[second]
    first, second = first[usable], second[usable]
    if not len(first):
        return least_squares(x, y)
    scales = (some_y[first] - some_y[second]) / (some_x[first] - some_x[second])
    shifts = some_y[first] - scales * some_x[first]
    hits = [int(_explained(some_x, some_y, a, b).sum()) for a, b in zip(scales, shifts)]
    best = int(np.argmax(hits))
    good = _explained(x, y, scales[best], shifts[best])
    return least_squares(x[good], y[good])


METHODS: dict[str, Callable[[NDArray, NDArray, str], Fit]] = {
    "least_squares": least_squares,
    "median": median_scaling,
    "robust_l1": robust_l1,
    "ransac": ransac,
    "none": lambda x, y, name: Fit(1.0, 0.0),
}


def fit(method: str, x: NDArray, y: NDArray, name: str) -> Fit:
    """Scale and shift of a prediction over the valid pixels of an image or a sequence.

    Args:
        method: a name in METHODS.
        x, y: [n] prediction and truth in the space of the fit, n > 0, finite; y above 0.
        name: of image or sequence, on which ransac's draws depend.

    Returns:
        Finite numbers always. A constant prediction is told by `solvable`; a negative scale, from a
        prediction that takes near for far, is returned as it is.
    """
    return METHODS[method](x, y, name)


def floor_of(prediction: NDArray) -> float:
    """What a map is raised to before it is inverted: 1/1000 of its largest value, 0 if none is above 0.

    A disparity has zeros (the sky), and one such pixel inverted would outweigh all others. A share, so that
    the scale of the map has no say; which share is our choice.
    """
    return _FLOOR * max(float(prediction.max()), 0.0)


def in_space(prediction: NDArray, quantity: str, space: str, floor: float) -> NDArray:
    """The prediction as the quantity in which it is fitted: itself, or inverted after the floor.

    A disparity known up to scale and shift does not become a depth known up to scale and shift when it is
    inverted. Where it is nevertheless asked for (space=depth), this is what a user of depth maps would do.

    Args:
        prediction: any shape. quantity, space: disparity or depth. floor: `floor_of` the whole image.
    """
    if quantity == space:
        return prediction
    if floor == 0:
        return np.zeros_like(prediction)  # 0 or less everywhere: constant, and told as such by the fit
    return 1 / np.maximum(prediction, np.float32(floor))


def depth_of(x: NDArray, fitted: Fit, space: str, range_m: tuple[float, float]) -> NDArray[np.float64]:
    """Depth in metres of a fitted prediction, held to a range.

    In disparity it is held to [1/farthest, 1/nearest] before it is inverted, so that what is at or below zero
    is as far as the protocol goes: a single such pixel can else bring AbsRel to 1000.

    Args:
        x: prediction in the space of the fit, any shape. range_m: nearest and farthest.
    """
    nearest, farthest = range_m
    aligned = fitted.scale * x.astype(np.float64) + fitted.shift
    if space == "depth":
        return np.clip(aligned, nearest, farthest)
    return 1 / np.clip(aligned, 1 / farthest, 1 / nearest)


def is_constant(variance: float, mean: float) -> bool:
    """Whether a variance is that of a constant, whose mean is off by rounding."""
    return variance <= (1e-12 * abs(mean)) ** 2


def _thinned(x: NDArray, y: NDArray) -> tuple[NDArray, NDArray]:
    """At most _SAMPLE pixels, evenly spaced, in float64."""
    chosen = np.linspace(0, len(x) - 1, min(len(x), _SAMPLE)).astype(np.int64)
    return x[chosen].astype(np.float64), y[chosen].astype(np.float64)


def _weighted_median(values: NDArray, weights: NDArray) -> float:
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    return float(values[order[np.searchsorted(reached, reached[-1] / 2)]])


def _slope(x: NDArray, y: NDArray, scale: float) -> float:
    """Slope (a subgradient) of min over the shift of Σ |scale·x + shift - y| / y at this scale."""
    residual, weight = scale * x - y, 1 / y
    residual = residual + _weighted_median(-residual, weight)
    sign = np.sign(residual)
    at_zero = residual == 0
    rest = float(np.sum(weight * sign))  # at the best shift the pixels on the line balance the others
    sign[at_zero] = -rest / float(np.sum(weight[at_zero]))
    return float(np.sum(weight * sign * x))


def _explained(x: NDArray, y: NDArray, scale: float, shift: float) -> NDArray[np.bool_]:
    return np.abs(scale * x + shift - y) <= _TOLERANCE * y


def align_least_squares(prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale and shift per image that bring a prediction nearest to the truth in disparity, in closed form.

    Minimises Σ (scale·prediction + shift - target)² over valid pixels. Source: Ranftl et al. 2020
    (arXiv 1907.01341); that Depth Anything's output is affine in disparity, not in depth, is its authors'
    word. Solved about the means in float64: the sums of squares of a map of 10⁵ pixels cancel in float32.

    Args:
        prediction: [b h w] disparity of any scale and shift.
        target: [b h w] disparity, 1/m; anything, even NaN, off the mask.
        mask: [b h w] bool, True where the truth is known.

    Returns:
        scale, shift: [b] float64; and solvable: [b] bool, False where the mask is empty (scale and shift are
        0) or the prediction is constant on it (scale is 0, shift the mean of the target). No NaN for a finite
        prediction. A negative scale, from a prediction that takes near for far, is returned as it is.
    """
    if not prediction.shape == target.shape == mask.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"prediction is {tuple(prediction.shape)}, target {tuple(target.shape)}, mask "
            f"{tuple(mask.shape)} {mask.dtype}; expected one shape [b h w] for all three and a bool mask"
        )
    mask = mask.flatten(1)  # [b n]
    prediction = torch.where(mask, prediction.flatten(1).double(), 0)
    target = torch.where(mask, target.flatten(1).double(), 0)
    pixels = mask.sum(1).clamp(min=1)

    prediction_mean, target_mean = prediction.sum(1) / pixels, target.sum(1) / pixels  # [b]
    centred = torch.where(mask, prediction - prediction_mean[:, None], 0)
    variance = centred.square().sum(1) / pixels
    covariance = (centred * target).sum(1) / pixels
    rounding = 1e-12 * prediction_mean.abs()  # the mean of a constant is off by less than this
    solvable = ~(variance <= rounding.square())
    scale = torch.where(solvable, covariance / torch.where(solvable, variance, 1), 0)
    return scale, target_mean - scale * prediction_mean, solvable
