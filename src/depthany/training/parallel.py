"""One training run on several ranks: gradients are averaged, counts and notes of a batch put together.

A loss divides by the mean over the ranks of its count (`losses.reduce.MeanOverRanks`), so that the mean
gradient is the gradient of the whole batch: results depend on the number of ranks only by rounding.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from depthany.data.batch import Batch
from depthany.data.left_out import ImageReport
from depthany.data.sampler import MixedBatches
from depthany.models.model import DenseModel, build_model
from depthany.system.distributed import Processes, full
from depthany.training.stages.base import Stage, StageOutput

PARALLELS = ("auto", "ddp", "fsdp")


def uses_fsdp(parallel: str, encoder: str, processes: Processes) -> bool:
    """Whether weights, gradients and optimizer state are sharded among the ranks (FSDP2).

    Args:
        parallel: ddp | fsdp | auto: fsdp for vitg, whose 1.3 billion parameters with gradients and AdamW's
            state take 21 GB, beside a frozen encoder and a teacher.
        encoder: size of the model that learns.
    """
    if processes.size == 1 or parallel == "ddp":
        return False
    return parallel == "fsdp" or encoder == "vitg"


def shard_run(model: DenseModel, stage: Stage, processes: Processes, device: torch.device) -> None:
    """Shards every network of a run in place, block by block; the optimizer is built after it.

    A block is gathered for its forward and backward pass and released again. Frozen networks are sharded too:
    each rank must send as many batches through all of them as the others, as a step does.
    """
    mesh = init_device_mesh(device.type, (processes.size,))
    _shard(model, mesh, reshard_after_forward=None)
    for network in stage.frozen().values():
        _shard(network, mesh, reshard_after_forward=True)
    for network in stage.trained().values():
        _shard(network, mesh, reshard_after_forward=None)


def _shard(network: Any, mesh: DeviceMesh, reshard_after_forward: bool | None) -> None:
    for block in getattr(getattr(network, "encoder", network), "blocks", ()):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh, reshard_after_forward=reshard_after_forward)


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard_run` has sharded it."""
    return isinstance(module, FSDPModule)


def unsharded(model: DenseModel) -> DenseModel:
    """Returns the model itself, or a copy with all of its weights if it is sharded.

    One process can use, score and save what it returns. All ranks call it together.
    """
    if not is_sharded(model):
        return model
    config: dict[str, Any] = model.config
    copy = build_model(**config)
    copy.load_state_dict(unsharded_tensors(model.state_dict()))
    return copy.to(full(next(model.parameters())).device)


def copy_buffers_from_main(model: nn.Module, processes: Processes) -> None:
    """Gives all ranks the buffers of rank 0: BatchNorm's statistics, which every rank computes alone."""
    if processes.size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def unsharded_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the whole of all `tensors`, of any shapes; all ranks call it together if they are sharded."""
    return {name: full(tensor) for name, tensor in tensors.items()}


class StageAndModel(nn.Module):
    """Stage and model as one module, whose forward pass DDP can see.

    Args:
        stage: stage of the run.
        model: the model that learns.
    """

    def __init__(self, stage: Stage, model: nn.Module) -> None:
        super().__init__()
        self.stage, self.model = stage, model

    def forward(self, batch: Batch, generator: torch.Generator) -> StageOutput:
        """Returns loss and log of a micro-batch."""
        return self.stage(self.model, batch, generator)


def wrap_ddp(module: StageAndModel, processes: Processes, device: torch.device) -> nn.Module:
    """Wraps stage and model in DDP; returns them unchanged on one process or under FSDP."""
    if processes.size == 1 or is_sharded(module.model):
        return module
    wrapped = DistributedDataParallel(module, gradient_as_bucket_view=True)
    if device.type == "cpu" and processes.size > 2:
        wrapped.register_comm_hook(None, mean_in_rank_order)
    return wrapped


def mean_in_rank_order(_state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Averages the gradients [n] of a bucket, summed from rank 0 up whatever their place in the bucket.

    gloo's own sum goes round a ring and starts elsewhere for each chunk, and DDP reorders gradients after the
    first step: a resumed run of three or more ranks would round otherwise. Two are safe, since a + b = b + a;
    GPUs promise no equal bits and do not need this.
    """
    gradient = bucket.buffer()  # [n]
    gathered = [torch.empty_like(gradient) for _ in range(dist.get_world_size())]

    def mean(_done: torch.futures.Future[list[torch.Tensor]]) -> torch.Tensor:
        total = gathered[0]
        for other in gathered[1:]:
            total += other
        return gradient.copy_(total.div_(len(gathered)))

    return dist.all_gather(gathered, gradient, async_op=True).get_future().then(mean)


@contextmanager
def sync_gradients(module: nn.Module, enabled: bool) -> Iterator[None]:
    """A backward pass inside averages gradients over the ranks if `enabled`; else it accumulates them."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_requires_gradient_sync(enabled, recurse=False)
    if isinstance(module, DistributedDataParallel) and not enabled:
        with module.no_sync():
            yield
    else:
        yield


def shared_count(
    processes: Processes,
    sampler: MixedBatches,
    unreadable: Path,
    max_share: float,
    goes_on: bool = False,
    tell: Callable[[str], None] = print,
) -> Callable[[int, Batch], None]:
    """Returns what sets `counts` of each batch to the images of all ranks, and lists images left out.

    Args:
        unreadable, max_share, goes_on, tell: see `ImageReport`; rank 0 keeps the list.
    """
    report = None
    if processes.is_main:
        report = ImageReport(unreadable, sampler.start, max_share, goes_on, tell)

    def take(k: int, batch: Batch) -> None:
        here = [len(batch.labeled_image), len(batch.unlabeled_image), len(batch.issues)]
        labeled, unlabeled, issues = processes.sum(here)
        batch.counts = labeled, unlabeled
        if issues:
            gathered = [issue for part in processes.gather(batch.issues) for issue in part]
            if report is not None:
                report.add(k, gathered, sampler.drawn_before(k + 1))

    return take
