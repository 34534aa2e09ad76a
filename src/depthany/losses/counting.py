"""What the losses share: the count that a batch shared by processes is divided by, and full precision."""

from collections.abc import Callable

import torch
from torch import Tensor

Across = Callable[[Tensor], Tensor]  # of a number [], its mean over the processes that share the batch


def alone(number: Tensor) -> Tensor:
    """`Across` where the whole batch is here."""
    return number


def or_one(count: Tensor) -> Tensor:
    """The count [], or 1 in place of 0; over several processes a mean count may lie between."""
    return torch.where(count > 0, count, 1)


def full_precision(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
