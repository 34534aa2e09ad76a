"""One training run in several processes: gradients are averaged, counts and notes of a batch put together.

A loss divides by the mean over the processes of its count (`losses.Across`), so that the mean gradient of all
is the gradient of the whole batch: results do not depend on the number of processes, but for rounding.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from depthany.data.batch import Batch
from depthany.data.left_out import ImageReport
from depthany.data.sampler import MixedBatches
from depthany.models.model import DepthModel
from depthany.system.distributed import Processes, full
from depthany.training.stages.base import StageOutput, trained_parameters

PARALLELS = ("auto", "ddp", "fsdp")


def shards_weights(parallel: str, encoder: str, processes: Processes) -> bool:
    """Whether weights, gradients and optimizer state are split among the processes (FSDP2).

    Args:
        parallel: ddp | fsdp | auto: fsdp for vitg, whose 1.3 billion parameters with gradients and AdamW's
            state take 21 GB, beside a frozen encoder and a teacher.
    """
    if processes.size == 1 or parallel == "ddp":
        return False
    return parallel == "fsdp" or encoder == "vitg"


def shard_weights(model: DepthModel, stage: nn.Module, processes: Processes, device: torch.device) -> None:
    """Split every network of a run block by block among the processes; the optimizer is built after it.

    A block is put together for its forward and backward pass and given up again. The frozen networks are
    split too, and each process must send as many batches through all of them as the others, as a step does.
    """
    mesh = init_device_mesh(device.type, (processes.size,))
    frozen = [getattr(stage, name, None) for name in ("teacher", "frozen_encoder")]
    networks: list[Any] = [model, *(each for each in frozen if each is not None)]
    for network in networks:
        encoder = network.encoder if isinstance(network, DepthModel) else network
        for block in encoder.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh, reshard_after_forward=None if network is model else True)
    if trained_parameters(stage):
        fully_shard(stage.get_submodule("projection"), mesh=mesh)


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard_weights` has split it."""
    return isinstance(module, FSDPModule)


def whole_model(model: DepthModel) -> DepthModel:
    """A model that can be used, scored and saved by one process: itself, or a copy with all of its weights.

    All processes must come here together where it is sharded.
    """
    if not is_sharded(model):
        return model
    config: dict[str, Any] = model.config
    copy = DepthModel(**config)
    copy.load_state_dict({name: full(tensor) for name, tensor in model.state_dict().items()})
    return copy.to(full(next(model.parameters())).device)


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
    """The same with gradients that are the mean over the processes; `whole` itself where they are that."""
    if processes.size == 1 or is_sharded(whole.model):
        return whole
    averaged = DistributedDataParallel(whole, gradient_as_bucket_view=True)
    if device.type == "cpu" and processes.size > 2:
        averaged.register_comm_hook(None, mean_in_rank_order)
    return averaged


def mean_in_rank_order(_state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """The mean of gradients [n], summed from process 0 up whatever their place in the bucket.

    gloo's own sum goes round a ring and begins each piece elsewhere, and DDP puts gradients in another order
    after the first step: a resumed run of three or more processes would round otherwise. Two are safe, since
    a + b = b + a; GPUs promise no equal bits and have no need of this.
    """
    gradient = bucket.buffer()
    gathered = [torch.empty_like(gradient) for _ in range(dist.get_world_size())]

    def mean(_done: torch.futures.Future[list[torch.Tensor]]) -> torch.Tensor:
        total = gathered[0]
        for each in gathered[1:]:
            total += each
        return gradient.copy_(total.div_(len(gathered)))

    return dist.all_gather(gathered, gradient, async_op=True).get_future().then(mean)


@contextmanager
def exchanged(module: nn.Module, last: bool) -> Iterator[None]:
    """Gradients of a micro-batch are exchanged in its backward pass if it is the `last` of its step."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_requires_gradient_sync(last, recurse=False)
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
        here = [len(batch.labeled_image), len(batch.unlabeled_image), len(batch.issues)]
        labeled, unlabeled, issues = processes.sum(here)
        batch.counts = labeled, unlabeled
        if issues:
            gathered = [issue for part in processes.gather(batch.issues) for issue in part]
            if report is not None:
                report.add(k, gathered, sampler.drawn_before(k + 1))

    return take
