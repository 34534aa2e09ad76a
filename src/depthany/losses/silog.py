"""The scale-invariant loss of logarithmic depth (SILog), in the forms of both metric recipes.

Source: Eigen et al. 2014 (arXiv 1406.2283) eq. 4. With g = ln prediction - ln target over all valid pixels of
the batch, both recipes are scale * sqrt(Var(g) + beta * mean(g)^2); beta is 1 - lambda of the paper's formula
mean(g^2) - lambda * mean(g)^2. Legend: `b` images, `h w` pixels.
"""

from functools import partial

import torch
from torch import Tensor

from depthany.losses.gradient import SCALES, steps_between
from depthany.losses.reduce import MeanOverRanks, full_precision, on_one_rank, one_if_zero

LEAST_M = 1e-7  # a prediction below it counts as this many metres, so that its logarithm is finite


def silog_loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    beta: float = 0.15,
    scale: float = 10.0,
    unbiased: bool = True,
    eps: float = 1e-7,
    mean_over_ranks: MeanOverRanks = on_one_rank,
) -> Tensor:
    """SILog of Depth Anything V1: 10 * sqrt(Var(g) + 0.15 * mean(g)^2), the variance over n - 1.

    The pixels of the whole micro-batch are pooled, those of other ranks too: an image with many valid pixels
    weighs more than one with few. Source: ZoeDepth's SILogLoss (github.com/isl-org/ZoeDepth, loss.py), which
    Depth Anything V1 takes over; it is 10 times the square root of lambda = 0.85, up to a factor n/(n - 1).

    Args:
        prediction: [b h w] metres, 0 or more.
        target: [b h w] metres, above 0 on the mask; may be anything off it.
        mask: [b h w] bool, True where the target is known.
        beta: weight of the squared mean, 0..1: 0 ignores the scale of the scene, 1 is the mean square.
        scale: factor on the square root.
        unbiased: divide the variance by n - 1 instead of n, with n the valid pixels of a rank, on average.
        eps: metres that are added to prediction and target before the logarithm.
        mean_over_ranks: see `depthany.losses.reduce.MeanOverRanks`.

    Returns:
        [] the loss, float64 for float64 input, else float32. It is 0 without gradient where no pixel is valid
        or all predictions are exact.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    if not prediction.shape == target.shape == mask.shape or mask.dtype != torch.bool:
        found = ", ".join(f"{tuple(each.shape)} {each.dtype}" for each in (prediction, target, mask))
        raise ValueError(f"prediction, target and mask are {found}; expected one shape [b h w], a bool mask")
    g = log_ratio(prediction, target, mask, eps)  # [b h w]
    n = one_if_zero(mean_over_ranks(mask.sum()))  # [] pixels of a rank, on average
    mean = _mean(g.sum() / n, mean_over_ranks)  # []
    centred = torch.where(mask, g - mean.detach(), 0)  # Var has no gradient through its mean
    variance = _mean(centred.square().sum() / n, mean_over_ranks)  # []
    if unbiased:
        variance = variance * n / (n - 1).clamp(min=1)
    return scale * safe_sqrt(variance + beta * mean.square())


silog_v2_loss = partial(silog_loss, beta=0.5, scale=1.0, unbiased=False, eps=0.0)
"""SILog of Depth Anything V2: sqrt(mean(g^2) - 0.5 * mean(g)^2), see `silog_loss`.

Source: github.com/DepthAnything/Depth-Anything-V2, metric_depth/util/loss.py. Half of the squared mean stays
in it, so that it does not fall to 0 while the scale of a scene is wrong.
"""


def log_gradient_loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    scales: int = SCALES,
    mean_over_ranks: MeanOverRanks = on_one_rank,
) -> Tensor:
    """Mean |gradient of g| over pairs of neighbouring valid pixels, at several scales; for sharper edges.

    Source: Li and Snavely 2018 (arXiv 1804.00607) eq. 4. Neither metric recipe uses a gradient term: it is an
    option, `stage.terms.log_gradient`. It is the mean over scales and pairs; `gradient_loss`, of relative
    disparity, is a sum over scales as in MiDaS.

    Args:
        prediction, target, mask, mean_over_ranks: see `silog_loss`.
        scales: every pixel, every 2nd, every 4th ... are compared with the next to the right and below.
    """
    g = log_ratio(prediction, target, mask, 0.0)  # [b h w]
    total = g.new_zeros(())
    for k in range(scales):
        for steps, both in steps_between(g[:, :: 2**k, :: 2**k], mask[:, :: 2**k, :: 2**k]):
            total = total + steps.sum() / one_if_zero(mean_over_ranks(both.sum()))
    return total / scales


def log_ratio(prediction: Tensor, target: Tensor, mask: Tensor, eps: float) -> Tensor:
    """Returns ln(prediction + eps) - ln(target + eps) [b h w] in full precision, 0 off the mask.

    Predictions off the mask are replaced before the logarithm, so that they have no gradient, not even NaN.
    """
    predicted = torch.where(mask, full_precision(prediction), 1)
    known = torch.where(mask, full_precision(target), 1)
    return (predicted + eps).clamp(min=LEAST_M).log() - (known + eps).clamp(min=LEAST_M).log()


def safe_sqrt(number: Tensor) -> Tensor:
    """Returns the square root of a number [], with value and gradient 0 where it is not above 0."""
    positive = number > 0
    return torch.where(positive, torch.where(positive, number, 1).sqrt(), 0 * number)  # NaN stays NaN


def _mean(of_rank: Tensor, mean_over_ranks: MeanOverRanks) -> Tensor:
    """Returns the mean over the ranks of a number [], with the gradient of this rank's part.

    The mean over the ranks of the gradients of any function of it is then the gradient of that function of
    the whole batch.
    """
    return mean_over_ranks(of_rank).detach() + (of_rank - of_rank.detach())
