"""THE loop of training, and what a step is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from depthany.data.batch import Batch
from depthany.system.distributed import ALONE, Processes, full
from depthany.system.signals import stop_signals
from depthany.training.checkpoints.state import Parts
from depthany.training.checkpoints.writer import CheckpointWriter, NoWriter
from depthany.training.optim import schedule, set_learning_rate
from depthany.training.parallel import Whole, averaging, exchanged
from depthany.training.stages.base import StageOutput, trained_parameters
from depthany.training.tracking import Meter, Silent, Tracker, log_scalars
from depthany.training.validation import Scores

Scored = dict[str, Scores]  # set -> metric -> value


@dataclass(frozen=True)
class Loop:
    """Plain settings of the loop; see configs/train.yaml."""

    micro_batches: int  # of the whole run
    accumulate: int
    seed: int
    warmup_steps: int
    decay_power: float
    clip_norm: float | None
    log_every: int
    image_every: int
    eval_every: int
    save_every: int

    @property
    def total_steps(self) -> int:
        return -(-self.micro_batches // self.accumulate)

    def due(self, step: int, every: int, at_end: bool = True) -> bool:
        """Whether something that happens every so many steps (0 = never, but for the end) happens after
        `step`.
        """
        return (every > 0 and step % every == 0) or (at_end and step == self.total_steps)


def train(
    parts: Parts,
    batches: Iterator[Batch],
    tracker: Tracker | Silent,
    validate: Callable[[], Scored],
    saves: CheckpointWriter | NoWriter,
    loop: Loop,
    device: torch.device,
    amp: torch.dtype | None,
    compiled: Callable[..., Any] | None = None,
    processes: Processes = ALONE,
) -> None:
    """Step until `loop.total_steps`; on a signal to stop, to any process, save and leave by `SystemExit`."""
    state, optimizer, meter = parts.state, parts.optimizer, Meter(processes)
    whole = averaging(Whole(parts.stage, parts.model, compiled), processes, device)
    with stop_signals() as received:
        while state.step < loop.total_steps:
            set_learning_rate(
                optimizer, schedule(state.step, loop.total_steps, loop.warmup_steps, loop.decay_power)
            )
            first = state.step * loop.accumulate
            last = min(first + loop.accumulate, loop.micro_batches)
            for k in range(first, last):
                batch = meter.wait_for(batches).to(device)
                with exchanged(whole, k == last - 1):
                    with torch.autocast(device.type, amp, enabled=amp is not None):
                        output = whole(batch, draw_generator(loop.seed, k))
                    require_finite(output, state.step)
                    parts.scaler.scale(output.loss / (last - first)).backward()
                meter.add(output, sum(batch.all_counts), last - first)
            gradient_norm = update(parts, loop.clip_norm)  # refuses a gradient that is not finite
            state.step += 1
            stopped = processes.max(received[0] if received else 0)  # all stop after the same step

            if loop.due(state.step, loop.log_every):
                log_scalars(tracker, state.step, meter, optimizer, gradient_norm, device)
            if loop.due(state.step, loop.image_every, at_end=loop.image_every > 0):
                tracker.pictures(state.step, output.views)
            if loop.due(state.step, loop.eval_every):
                with meter.paused():
                    scores = validate()
                    tracker.scalars(state.step, flat_scores(scores))
                    if mean_abs_rel(scores) < state.best_abs_rel:
                        state.best_abs_rel = mean_abs_rel(scores)
                        saves.save_best(parts)
            if loop.due(state.step, loop.save_every) or stopped:
                with meter.paused():
                    saves.save(parts)
            if stopped and state.step < loop.total_steps:
                saves.wait()
                processes.wait()
                saved = "all saved" if saves.written_step == state.step else f"saved up to {saves.newest()}"
                tracker.say(f"stopped at step {state.step}, {saved}; the same command continues")
                tracker.close()
                raise SystemExit(128 + stopped)


def update(parts: Parts, clip_norm: float | None) -> Tensor:
    """One optimizer step from the gathered gradients; gives their norm []."""
    parts.scaler.unscale_(parts.optimizer)
    parameters = [*parts.model.parameters(), *trained_parameters(parts.stage)]
    limit = clip_norm if clip_norm is not None else float("inf")
    gradient_norm = full(torch.nn.utils.clip_grad_norm_(parameters, limit))
    skips = parts.scaler.is_enabled()  # fp16's scaler leaves such a step out itself
    if not skips and not torch.isfinite(gradient_norm):
        raise ValueError(
            f"the gradient is not finite at step {parts.state.step}, though the loss is; the step was not "
            "taken and the last checkpoint is good: lower optimizer.lr, or try precision=fp32"
        )
    parts.scaler.step(parts.optimizer)
    parts.scaler.update()
    parts.optimizer.zero_grad(set_to_none=True)
    return gradient_norm


def require_finite(output: StageOutput, step: int) -> None:
    """Stop before the step where the loss is no number, naming the part, at the price of a host sync."""
    if torch.isfinite(output.loss):
        return
    losses = {name: float(value.detach()) for name, value in output.parts.items() if name.startswith("loss/")}
    bad = [name for name, value in losses.items() if not np.isfinite(value)] or ["loss/total"]
    raise ValueError(
        f"{', '.join(bad)} is not finite at step {step} ({losses}); the step was not taken and the last "
        f"checkpoint is "
        "good: lower optimizer.lr, set optimizer.clip_norm, or try precision=fp32"
    )


def draw_generator(seed: int, k: int) -> torch.Generator:
    """What the perturbations of micro-batch `k` are drawn from."""
    state = np.random.SeedSequence([seed, k]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def flat_scores(scores: Scored) -> dict[str, float]:
    """Returns the scores as val/<set>/<metric> for the log."""
    return {
        f"val/{name}/{key}": value
        for name, values in scores.items()
        for key, value in values.items()
        if key != "images"
    }


def mean_abs_rel(scores: Scored) -> float:
    """Mean AbsRel over the validation sets; infinite where there is none."""
    return sum(values["abs_rel"] for values in scores.values()) / len(scores) if scores else float("inf")
