"""Refuses a step whose loss or gradient is not finite, without a wait for a GPU."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from depthany.system.distributed import ALONE, Processes
from depthany.training.stages.base import StageOutput


@dataclass
class _Open:
    """A step that is not yet known to be finite.

    step: number of steps before it.
    skips: whether fp16's scaler leaves out a step with a gradient that is not finite, without an error.
    numbers: [1 + micro-batches] gradient norm and losses, on the CPU once `copied` has happened.
    parts: the parts of the loss of each micro-batch, [] by name, on their device.
    """

    step: int
    skips: bool
    numbers: Tensor
    copied: torch.cuda.Event | None
    parts: list[dict[str, Tensor]]


@dataclass
class FiniteCheck:
    """Looks at the loss and the gradient norm of each step.

    With `at_once` it reads both before the step is taken, which is free on a CPU. On a GPU that would mean
    two waits per step, so there the device itself skips a bad step, and `settle` raises the error later:
    before the next step, and before anything is averaged, logged, scored or saved.

    Args:
        at_once: see above. False needs an optimizer that can skip a step, see `for_run`.
        processes: processes that share the batches; all call each method together.
    """

    at_once: bool = True
    processes: Processes = ALONE
    _losses: list[Tensor] = field(default_factory=list)
    _parts: list[dict[str, Tensor]] = field(default_factory=list)
    _open: _Open | None = None
    _is_new: bool = False  # a step was taken since `settle`

    @classmethod
    def for_run(
        cls, optimizer: torch.optim.Optimizer, device: torch.device, processes: Processes
    ) -> "FiniteCheck":
        """Returns the check for an optimizer: later if it is a fused one on a GPU, else at once."""
        can_leave_out = getattr(optimizer, "_step_supports_amp_scaling", False)
        return cls(device.type != "cuda" or not can_leave_out, processes)

    def gradient_of_loss(self, output: StageOutput, step: int) -> Tensor | None:
        """Returns the gradient that the backward pass of a micro-batch starts from; None means 1.

        Raises ValueError if `at_once` and the loss is not finite. Otherwise the start is NaN for such a loss,
        so every gradient is NaN, on all ranks.
        """
        if self.at_once:
            if not torch.isfinite(output.loss):
                raise ValueError(loss_problem(parts_of(output.scalars), step))
            return None
        loss = output.loss.detach()
        self._losses.append(loss)
        self._parts.append(parts_of(output.scalars))
        return loss * 0 + 1

    def take_step(
        self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, norm: Tensor, step: int
    ) -> None:
        """Takes the optimizer's step if the gradient, of norm [], is finite.

        Else fp16's scaler leaves the step out; without one, raises a ValueError now or in `settle`.
        """
        skips = scaler.is_enabled()
        if self.at_once:
            if not skips and not torch.isfinite(norm):
                raise ValueError(gradient_problem(step))
            scaler.step(optimizer)
            self._is_new = True
            return
        numbers = torch.stack([norm.float(), *(loss.float() for loss in self._losses)])
        copied = numbers.to("cpu", non_blocking=True)  # page-locked, where it comes from a GPU
        event = torch.cuda.current_stream(norm.device).record_event() if norm.is_cuda else None
        self._open = _Open(step, skips, copied, event, self._parts)
        self._losses, self._parts, self._is_new = [], [], True
        if not skips:
            optimizer.found_inf = 1 - torch.isfinite(norm).float()  # type: ignore[attr-defined]
        scaler.step(optimizer)
        if not skips:
            del optimizer.found_inf  # type: ignore[attr-defined]

    def settle(self) -> bool:
        """Reads the numbers of the newest step; returns False if they were read before.

        Raises ValueError if its loss was not finite, or its gradient was not and no scaler skipped the step.
        """
        is_new, newest = self._is_new, self._open
        self._is_new, self._open = False, None
        if newest is None:
            return is_new
        if newest.copied is not None:
            newest.copied.synchronize()
        norm, *losses = newest.numbers.tolist()
        if math.isfinite(norm):  # the same on all ranks, and not finite if the loss of one is not
            return True
        bad = [parts for loss, parts in zip(losses, newest.parts) if not math.isfinite(loss)]
        problems = self.processes.gather(loss_problem(bad[0], newest.step) if bad else None)
        of_loss = [problem for problem in problems if problem is not None]
        if of_loss:
            raise ValueError(of_loss[0])
        if not newest.skips:
            raise ValueError(gradient_problem(newest.step))
        return True


def parts_of(scalars: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the parts of the loss [] among the scalars of the log, by name, without gradient."""
    return {name: value.detach() for name, value in scalars.items() if name.startswith("loss/")}


def loss_problem(parts: Mapping[str, Tensor], step: int) -> str:
    """Returns the error of a loss that is not finite, which names its parts [] that are not."""
    losses = {name: float(value) for name, value in parts.items()}
    bad = [name for name, value in losses.items() if not math.isfinite(value)] or ["loss/total"]
    return (
        f"{', '.join(bad)} is not finite at step {step} ({losses}); the step was not taken and the last "
        "checkpoint is good: lower optimizer.lr, set optimizer.clip_norm, or try precision=fp32"
    )


def gradient_problem(step: int) -> str:
    """Returns the error of a gradient that is not finite."""
    return (
        f"the gradient is not finite at step {step}, though the loss is; the step was not taken and the last "
        "checkpoint is good: lower optimizer.lr, or try precision=fp32"
    )
