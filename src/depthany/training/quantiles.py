"""Quantiles of values that all ranks hold together, for the log."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from depthany.system.distributed import ALONE, Processes

QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9, "max": 1.0}


def quantiles(distributions: Mapping[str, Tensor], processes: Processes = ALONE) -> dict[str, float]:
    """Returns the quantiles of each distribution as <name>/p10 and so on; none for an empty one.

    A quantile q of n values is the one at place q (n - 1), rounded, in ascending order. It waits for the
    device; all ranks call it together.

    Args:
        distributions: by name, values of any shape of this rank; the same names on all ranks.
    """
    found = dict[str, float]()
    for name, values in distributions.items():
        ordered = torch.sort(of_all_ranks(values.float().flatten(), processes)).values  # [n]
        if len(ordered):
            places = [round(share * (len(ordered) - 1)) for share in QUANTILES.values()]
            found |= zip((f"{name}/{quantile}" for quantile in QUANTILES), ordered[places].tolist())
    return found


def of_all_ranks(values: Tensor, processes: Processes) -> Tensor:
    """Returns the values [n] of all ranks, in the order of ranks; on the device if there is one rank."""
    if processes.size == 1:
        return values
    return torch.from_numpy(np.concatenate(processes.gather(values.cpu().numpy())))
