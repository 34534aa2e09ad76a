"""`torch.compile`, region by region: blocks, decoders, heads, losses and perturbations of a run.

A whole step as one graph takes minutes to compile. A block is compiled once for all blocks of a size, and
what stands between the regions runs as it is. Modules stay where and what they are: names in checkpoints,
EMA, DDP, FSDP and activation checkpointing see no difference. Inductor keeps compiled code on disk (its
cache of FX graphs, in TORCHINDUCTOR_CACHE_DIR), so that the second run of the same shapes starts sooner.
"""

import importlib.util
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from depthany.data.batch import Batch
from depthany.models.model import DenseModel
from depthany.training.stages.base import Stage

CHOICES = ("auto", True, False)
LONG_STEPS = 2000  # tried by hand on an H100, ViT-S at 518: 22 ms of a step of 209 saved, in 42 s
OLDEST_GPU = (7, 0)  # compute capability that Triton compiles for
MOST_VARIANTS = 64  # of a region: blocks of a CNN differ in shape
CUDA_GRAPHS = {"triton.cudagraphs": True}  # options of inductor


def choose_compile(
    choice: str | bool, device: torch.device, steps: int, deterministic: bool = False
) -> tuple[bool, str]:
    """Returns whether to compile, and a line that says why; the line is "" where the user has decided.

    Args:
        choice: true | false | auto: on a GPU that Triton supports, for a run of `LONG_STEPS` or more.
        steps: steps left to train.
        deterministic: whether the run repeats bit for bit, which `auto` leaves to the plain kernels.
    """
    if choice != "auto":
        return bool(choice), ""
    why_not = (
        f"the device is {device.type}, which gains little"
        if device.type != "cuda"
        else "Triton is not installed"
        if importlib.util.find_spec("triton") is None
        else "the GPU is too old for Triton"
        if torch.cuda.get_device_capability(device) < OLDEST_GPU
        else "deterministic=true"
        if deterministic
        else f"{steps} steps are fewer than the {LONG_STEPS} from which compilation pays off"
        if steps < LONG_STEPS
        else ""
    )
    if why_not:
        return False, f"compile=auto: not compiled, {why_not}"
    return True, f"compile=auto: compiled during the first step, for {steps} steps on {device.type}"


def compile_run(model: DenseModel, stage: Stage, cuda_graphs: bool = False, **options: Any) -> None:
    """Compiles the regions of the model, of the stage's frozen networks and of the stage, in place.

    Nothing is compiled before the first forward pass. Sizes are fixed: labeled and unlabeled images, teacher
    and student have batches of their own, each of one size (see `UsualSize`).

    Args:
        cuda_graphs: whether the regions of the networks are replayed as CUDA graphs. Losses are not: they
            outlive the step.
        options: options of `torch.compile`.
    """
    options = {"dynamic": False, **options}
    of_networks = options | ({"options": CUDA_GRAPHS} if cuda_graphs else {})
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, MOST_VARIANTS)
    # Traced instead of looked up, such a function returns the same: ours depend only on their arguments.
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
    for network in (model, *stage.frozen().values()):
        for region in regions_of(network):
            region.compile(**of_networks)
    for method in stage.regions:
        setattr(stage, method, torch.compile(getattr(stage, method), **options))
    stage.is_compiled = True


def regions_of(network: nn.Module) -> list[nn.Module]:
    """Returns the encoder's blocks, the decoder and the head of a model, or the blocks of an encoder."""
    encoder: Any = getattr(network, "encoder", network)
    parts = [network.decoder, network.head] if isinstance(network, DenseModel) else []
    return [*encoder.blocks, *(part for part in parts if next(part.parameters(), None) is not None)]


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that runs `function` without compiled code: validation has images of any size."""

    def call(*arguments: Any, **options: Any) -> Any:
        with torch.compiler.set_stance("force_eager"):
            return function(*arguments, **options)

    return call


class UsualSize:
    """Lets batches that are smaller than others before them run uncompiled, such as the last one of a run or
    one whose images were left out: compiling for another size would take longer.

    Args:
        enabled: whether anything is compiled.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled, self._labeled, self._unlabeled = enabled, 0, 0

    def __call__(self, batch: Batch) -> AbstractContextManager[Any]:
        """Returns the context of the forward and backward pass of a batch; activation checkpointing computes
        blocks again in the latter.
        """
        labeled, unlabeled = len(batch.labeled_image), len(batch.unlabeled_image)
        if not self.enabled:
            return nullcontext()
        if labeled < self._labeled or unlabeled < self._unlabeled:
            return torch.compiler.set_stance("force_eager")
        self._labeled, self._unlabeled = labeled, unlabeled
        torch.compiler.cudagraph_mark_step_begin()  # CUDA graphs may reuse the memory of the batch before
        return nullcontext()
