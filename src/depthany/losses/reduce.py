"""Means that all losses share: over a mask, and over a batch that several ranks hold together."""

from collections.abc import Callable

import torch
from torch import Tensor

MeanOverRanks = Callable[[Tensor], Tensor]
"""Takes a number [], or a vector, of this rank and returns its mean over the ranks that share the batch.

A loss divides its sum by the mean over the ranks of its count. The mean over the ranks of the loss, and of
its gradient, is then that of the whole batch, however the images are dealt.
"""


def on_one_rank(number: Tensor) -> Tensor:
    """`MeanOverRanks` of a batch that this process holds alone: returns the number [] or vector itself."""
    return number


def one_if_zero(count: Tensor) -> Tensor:
    """Returns the count [], or 1 where it is 0, to divide by. A mean of counts may lie between 0 and 1."""
    return torch.where(count > 0, count, 1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean of each row's values [b n] over its mask [b n] bool: [b 1], 0 for an empty mask."""
    return torch.where(mask, values, 0).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)


def mean_of_sums(
    totals: Tensor, counts: Tensor, reduction: str, mean_over_ranks: MeanOverRanks = on_one_rank
) -> Tensor:
    """Returns the mean [...] of what each image [b ...] has added up.

    Args:
        totals, counts: [b ...] sum of the errors of each image, and of how many pixels.
        reduction: "batch": the mean over all pixels of the batch; "image": the mean of each image first,
            then over the images that have a pixel.
        mean_over_ranks: see `MeanOverRanks`.
    """
    if reduction == "batch":
        return totals.sum(0) / one_if_zero(mean_over_ranks(counts.sum(0)))
    return (totals / counts.clamp(min=1)).sum(0) / one_if_zero(mean_over_ranks((counts > 0).sum(0)))


def full_precision(values: Tensor) -> Tensor:
    """Returns the values in float64 if they are float64, else in float32, whatever autocast is on."""
    return values if values.dtype == torch.float64 else values.float()
