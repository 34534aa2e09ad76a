"""A step that is not finite: left out by the device, and found a step later with the error of a CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from depthany.data.batch import Batch
from depthany.models.model import depth_anything
from depthany.system.distributed import ALONE, Processes
from depthany.training.checkpoints.state import TrainingState
from depthany.training.checkpoints.writer import CheckpointWriter
from depthany.training.ema import EmaSettings, WeightAverage
from depthany.training.finite import FiniteCheck
from depthany.training.loop import LoopSettings, Run, train, update
from depthany.training.optim import OptimizerSettings, ScheduleSettings, build_optimizer
from depthany.training.stages.base import Stage, StageOutput
from depthany.training.tracking import NullTracker

pytestmark = pytest.mark.usefixtures("micro")
CPU, ONE = torch.device("cpu"), Batch(*(torch.zeros(1) for _ in range(4)))


class Bursts(Stage):
    """A stage whose loss, or only its gradient, is not finite in one micro-batch."""

    def __init__(self, bad: int, where: str) -> None:
        super().__init__()
        self.bad, self.where, self.seen = bad, where, 0

    def forward(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> StageOutput:
        zero = (model.head.conv3.bias * 0).sum()
        loss = model.head.conv3.weight.sum() + zero
        if self.seen == self.bad:
            loss = loss * torch.nan if self.where == "loss" else loss + zero.sqrt()  # of infinite slope
        self.seen += 1
        return StageOutput(loss, {"loss/labeled": loss, "loss/other": torch.zeros(())}, {})


def snapshot(state: TrainingState) -> list[Tensor]:
    assert state.average is not None
    moments = [value for each in state.optimizer.state.values() for value in each.values()]
    tensors = [*state.model.state_dict().values(), *moments, *state.average.tensors.values()]
    return [tensor.clone() for tensor in tensors]


def train_until_it_fails(
    at_once: bool,
    bad: int,
    where: str,
    folder: Path,
    accumulate: int = 1,
    save_every: int = 0,
    clip: Any = None,
) -> tuple[str, list[Tensor], list[str]]:
    """Returns the error, the state that is left, and the checkpoints."""
    torch.manual_seed(0)
    model, settings = (
        depth_anything("micro"),
        LoopSettings(8, accumulate, 0, ScheduleSettings(), clip, 0, 0, 0, save_every),
    )
    state = TrainingState(
        model,
        Bursts(bad, where),
        build_optimizer(model, [], OptimizerSettings(1e-3)),
        torch.amp.GradScaler("cpu", enabled=False),
        average=WeightAverage(model, EmaSettings(0.5)),
    )
    with pytest.MonkeyPatch.context() as patch, CheckpointWriter(folder, 9, "stop", print) as writer:
        patch.setattr(FiniteCheck, "for_run", lambda *_: FiniteCheck(at_once))
        run = Run(state, iter([ONE] * 8), lambda _: {}, settings, NullTracker(), writer, CPU)
        with pytest.raises(ValueError) as error:
            train(run)
    return str(error.value), snapshot(state), sorted(path.name for path in folder.glob("*.pt"))


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("options", [{}, {"save_every": 1}, {"accumulate": 2, "clip": 1.0}])
def test_later_error_leaves_what_an_early_one_leaves(
    where: str, options: dict[str, Any], tmp_path: Path
) -> None:
    early, later = (
        train_until_it_fails(at_once, 3, where, tmp_path / str(at_once), **options)
        for at_once in (True, False)
    )
    step = 1 if "accumulate" in options else 3
    named = "loss/labeled is" if where == "loss" else "the gradient is"
    assert early[0].startswith(f"{named} not finite at step {step}")
    assert later[0] == early[0]
    assert all(torch.equal(one, other) for one, other in zip(early[1], later[1], strict=True))
    assert later[2] == early[2]


def test_good_steps_are_the_same(tmp_path: Path) -> None:
    """The last step fails here, so that the others are all taken and compared."""
    early, later = (
        train_until_it_fails(at_once, 7, "loss", tmp_path / str(at_once)) for at_once in (True, False)
    )
    assert all(torch.equal(one, other) for one, other in zip(early[1], later[1], strict=True))


class Reads(TorchDispatchMode):
    """Notes values that the program reads."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in func._schema.name for name in ("_local_scalar_dense", "is_nonzero", "nonzero")):
            self.reads.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("at_once, reads", [(True, 2), (False, 0)])
def test_update_reads_no_value_but_at_once(at_once: bool, reads: int) -> None:
    model, check = depth_anything("micro"), FiniteCheck(at_once)
    state = TrainingState(
        model,
        Bursts(9, "loss"),
        build_optimizer(model, [], OptimizerSettings(1e-3)),
        torch.amp.GradScaler("cpu", enabled=False),
    )
    output = state.stage(model, ONE, torch.Generator())
    with Reads() as mode:
        output.loss.backward(check.gradient_of_loss(output, 0))
        update(state, 1.0, check)
    assert len(mode.reads) == reads
    assert check.settle()
    assert not check.settle()


def test_scaler_leaves_out_an_overflow_without_error() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer, check = torch.optim.AdamW([weight], 0.1, fused=True), FiniteCheck(at_once=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor, moves in ((torch.inf, False), (1.0, True)):
        before = weight.detach().clone()
        scaler.scale((weight * factor).sum()).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_([weight], 1.0)
        check.take_step(optimizer, scaler, norm, 0)
        scaler.update()
        optimizer.zero_grad()
        assert check.settle()
        assert torch.equal(weight, before) != moves
    assert scaler.get_scale() == 2.0


class Two(Processes):
    """Two ranks, of which the other one has a loss that is not finite."""

    def gather(self, value: Any) -> list[Any]:
        return [value, "loss/labeled of the other rank"]


def test_loss_of_another_rank_is_named_on_all() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer, check = torch.optim.AdamW([weight], 0.1, fused=True), FiniteCheck(False, Two(size=2))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    weight.grad = torch.full((2,), torch.nan)
    check.take_step(optimizer, scaler, torch.tensor(torch.nan), 5)
    with pytest.raises(ValueError, match="of the other rank"):
        check.settle()
    check.take_step(optimizer, scaler, torch.tensor(1.0), 5)
    assert check.settle()  # a good step is not talked about


def test_check_is_later_only_on_gpus_with_fused_optimizers() -> None:
    weight = [nn.Parameter(torch.ones(2))]
    fused, plain = torch.optim.AdamW(weight, fused=True), torch.optim.AdamW(weight, fused=False)
    choices = [(fused, "cuda"), (plain, "cuda"), (fused, "cpu"), (fused, "mps")]
    found = [FiniteCheck.for_run(optimizer, torch.device(name), ALONE).at_once for optimizer, name in choices]
    assert found == [False, True, True, True]
