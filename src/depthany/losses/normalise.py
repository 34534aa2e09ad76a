"""Remove shift and scale of each image from prediction and target, as relative depth needs it.

Maps come as rows of pixels, [b n] with n = h * w, so that each statistic is one reduction. Values off the
mask must be finite: `pixel_rows` puts zeros there.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from depthany.losses.order import masked_median, median_by_rank
from depthany.losses.reduce import full_precision, masked_mean


class Normalised(NamedTuple):
    """Maps that can be compared pixel by pixel.

    prediction, target: [b n]; finite but meaningless off the mask.
    spread: [b] how far the target's values lie apart, in the target's unit; 0 if they are all equal.
    """

    prediction: Tensor
    target: Tensor
    spread: Tensor


def pixel_rows(values: Tensor, mask: Tensor) -> Tensor:
    """Returns `values` [b h w] as rows [b n] in full precision, 0 wherever mask [b h w] bool is False."""
    return torch.where(mask.flatten(1), full_precision(values).flatten(1), 0)


def by_median_and_mad(prediction: Tensor, target: Tensor, mask: Tensor, eps: float) -> Normalised:
    """Subtracts each map's median and divides by its mean absolute deviation (MAD) about it.

    Source: Ranftl et al. 2020 (arXiv 1907.01341) section 5, eq. 5; Yang et al. 2024 (arXiv 2401.10891) eq.
        2-3.

    Args:
        prediction, target: [b n], finite.
        mask: [b n] bool, True where the target is known; median and MAD are taken over these pixels.
        eps: smallest MAD that is divided by, in the map's unit.

    Returns:
        Both maps normalised; the spread is the target's MAD.
    """
    if prediction.device.type != "cpu":
        return both_by_median_and_mad(prediction, target, mask, eps)
    predicted, _ = _remove_median_and_mad(prediction, mask, eps)
    expected, spread = _remove_median_and_mad(target, mask, eps)
    return Normalised(predicted, expected, spread)


def both_by_median_and_mad(prediction: Tensor, target: Tensor, mask: Tensor, eps: float) -> Normalised:
    """The GPU form of `by_median_and_mad`: both maps at once, in half the kernels.

    Args:
        prediction, target, mask, eps: see `by_median_and_mad`.
    """
    maps = torch.stack([prediction, target])  # [2 b n]
    centred = maps - median_by_rank(maps, mask)
    pixels = mask.sum(1, keepdim=True).clamp(min=1)  # [b 1]
    scale = torch.where(mask, centred.abs(), 0).sum(2, keepdim=True) / pixels  # [2 b 1]
    predicted, expected = (centred / scale.clamp(min=eps)).unbind()
    return Normalised(predicted, expected, scale[1, :, 0])


def _remove_median_and_mad(values: Tensor, mask: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Returns (values - t) / s [b n] with t the median and s the MAD, and s [b]."""
    centred = values - masked_median(values, mask)  # [b n]
    scale = masked_mean(centred.abs(), mask)  # [b 1]
    return centred / scale.clamp(min=eps), scale[:, 0]


def by_least_squares(prediction: Tensor, target: Tensor, mask: Tensor, eps: float) -> Normalised:
    """Scales and shifts each prediction onto its target by least squares.

    Source: Ranftl et al. 2020 (arXiv 1907.01341) eq. 1-4. The target keeps its scale, so the loss grows with
        it.

    The normal equations are solved about the means: n·Σd² - (Σd)² would cancel in float32. A constant
    prediction has no scale: it gets scale 0, hence no gradient.

    Args:
        prediction, target: [b n], finite.
        mask: [b n] bool, True where the target is known; the fit is over these pixels.
        eps: standard deviation up to which a prediction counts as constant, in the prediction's unit.

    Returns:
        The fitted prediction and the target, both minus the target's mean; the spread is the target's
        standard deviation.
    """
    prediction_mean, target_mean = masked_mean(prediction, mask), masked_mean(target, mask)  # [b 1]
    prediction, target = prediction - prediction_mean, target - target_mean  # [b n]
    variance = masked_mean(prediction.square(), mask)  # [b 1]
    rounding = 1e-6 * prediction_mean.detach().abs()  # the mean of a constant is off by this at most
    solvable = ~(variance <= rounding.clamp(min=eps).square())
    covariance = masked_mean(prediction * target, mask)  # [b 1]
    scale = torch.where(solvable, covariance / torch.where(solvable, variance, 1), 0)
    spread = masked_mean(target.square(), mask).sqrt()[:, 0]  # [b]
    return Normalised(scale * prediction, target, spread)


NORMALISATIONS: dict[str, Callable[[Tensor, Tensor, Tensor, float], Normalised]] = {
    "median_mad": by_median_and_mad,
    "least_squares": by_least_squares,
}
