"""One training run in several processes: gradients are averaged, counts and notes of a batch put together.

A loss divides by the mean over the processes of its count (`losses.Across`), so that the mean gradient of all
is the gradient of the whole batch: results do not depend on the number of processes, but for rounding.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from depthany.data.dataset import Batch
from depthany.data.report import ImageReport
from depthany.data.sampler import MixedBatches
from depthany.distributed import Processes
from depthany.stages import StageOutput


class Whole(nn.Module):
    """Stage and model as one module: what DDP is to see go forward.

    Args:
        compiled: the model as `torch.compile` made it, which then goes forward in its place.
    """

    def __init__(
        self, stage: nn.Module, model: nn.Module, compiled: Callable[..., Any] | None = None
    ) -> None:
        super().__init__()
        self.stage, self.model, self._compiled = stage, model, compiled

    def forward(self, batch: Batch, generator: torch.Generator) -> StageOutput:
        """What the stage makes of a micro-batch."""
        return self.stage(self._compiled or self.model, batch, generator)


def averaging(whole: Whole, processes: Processes, device: torch.device) -> nn.Module:
    """The same, with gradients that are the mean over the processes; alone it is `whole` itself."""
    if processes.size == 1:
        return whole
    # The order in which DDP puts gradients together follows their arrival in the first step, and with four
    # processes a sum depends on it: a resumed run would round otherwise. Looking for unused parameters keeps
    # the order. GPUs promise no equal bits, and do without.
    keep_order = device.type == "cpu"
    warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
    return DistributedDataParallel(
        whole, broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=keep_order
    )


@contextmanager
def exchanged(module: nn.Module, last: bool) -> Iterator[None]:
    """Gradients of a micro-batch are exchanged in its backward pass if it is the `last` of its step."""
    if isinstance(module, DistributedDataParallel) and not last:
        with module.no_sync():
            yield
    else:
        yield


def shared_count(
    processes: Processes, sampler: MixedBatches, unreadable: Path, max_share: float
) -> Callable[[int, Batch], None]:
    """What tells a batch how many images all processes have of it, and the list what was left out.

    Args:
        unreadable, max_share: see `ImageReport`; process 0 keeps the list.
    """
    report = ImageReport(unreadable, sampler.start, max_share) if processes.is_main else None

    def take(k: int, batch: Batch) -> None:
        here = [len(batch.labeled_image), len(batch.unlabeled_image), len(batch.notes)]
        labeled, unlabeled, notes = processes.sum(here)
        batch.counts = labeled, unlabeled
        if notes:
            gathered = [note for each in processes.gather(batch.notes) for note in each]
            if report is not None:
                report.add(k, gathered, sampler.drawn_before(k + 1))

    return take
