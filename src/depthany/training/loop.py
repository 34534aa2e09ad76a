"""THE loop of training, and what a step is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from depthany.data.batch import Batch
from depthany.data.targets import TARGETS
from depthany.metrics.table import METRICS
from depthany.models.model import DenseModel
from depthany.system.distributed import ALONE, Processes, full
from depthany.system.signals import stop_signals
from depthany.training.alignment_watch import AlignmentWatch
from depthany.training.checkpoints.state import TrainingState
from depthany.training.checkpoints.writer import CheckpointWriter, NullWriter
from depthany.training.early_stopping import EarlyStoppingSettings, has_run_out, note_score
from depthany.training.finite import FiniteCheck
from depthany.training.loggers.logger import SCORES
from depthany.training.meter import Meter, log_scalars
from depthany.training.optim import (
    ScheduleSettings,
    clip_gradients,
    lr_factor,
    momentum_of,
    set_learning_rate,
)
from depthany.training.parallel import (
    StageAndModel,
    copy_buffers_from_main,
    sync_gradients,
    unsharded,
    wrap_ddp,
)
from depthany.training.regional import UsualSize
from depthany.training.stages.base import trained_parameters
from depthany.training.tracking import NullTracker, Tracker
from depthany.training.validation import Scores, is_dead

SetScores = dict[str, Scores]  # set -> metric -> value


@dataclass(frozen=True)
class LoopSettings:
    """Plain settings of the loop; see configs/train.yaml."""

    micro_batches: int  # of the whole run
    accumulate: int
    seed: int
    schedule: ScheduleSettings
    clip_norm: float | None
    log_every: int
    image_every: int
    eval_every: int
    save_every: int
    early_stopping: EarlyStoppingSettings = field(default_factory=EarlyStoppingSettings)

    @property
    def total_steps(self) -> int:
        return -(-self.micro_batches // self.accumulate)

    def micro_batches_of(self, step: int) -> range:
        """Returns the numbers of the micro-batches of a step; the last step may have fewer."""
        first = step * self.accumulate
        return range(first, min(first + self.accumulate, self.micro_batches))

    @property
    def saves_before_validation(self) -> bool:
        """Whether steps are saved first: a validation may fail, as on a bad file, or end the run."""
        return self.save_every > 0 or self.early_stopping.patience is not None

    def is_due(self, step: int, every: int, at_end: bool = True) -> bool:
        """Whether something done each `every` steps (0 = never) and at the end is due after `step`."""
        return (every > 0 and step % every == 0) or (at_end and step == self.total_steps)

    def uses_weights_of(self, step: int) -> bool:
        """Whether anything is logged, shown, scored or saved after this step; always after the last."""
        every = (self.log_every, self.image_every, self.eval_every, self.save_every)
        return any(self.is_due(step, each) for each in every)


@dataclass
class Run:
    """One run: what training changes, what it reads, and where its results go.

    state: model, stage, optimizer and progress, restored from the newest checkpoint.
    batches: micro-batches from the first that `state` has not seen.
    score: scores a model that one process can use on the validation sets.
    tracker, writer: write the log and the checkpoints.
    amp: dtype of autocast, or None.
    newest_scores: scores of the last validation, with its step.
    faults: lines on what was wrong at the last line of the log.
    """

    state: TrainingState
    batches: Iterator[Batch]
    score: Callable[[DenseModel], SetScores]
    settings: LoopSettings
    tracker: Tracker | NullTracker
    writer: CheckpointWriter | NullWriter
    device: torch.device
    amp: torch.dtype | None = None
    processes: Processes = ALONE
    newest_scores: tuple[int, SetScores] | None = None
    faults: tuple[str, ...] = ()

    def is_over(self) -> bool:
        """Whether all steps are taken, or early stopping ends the run earlier."""
        progress, settings = self.state.progress, self.settings
        return progress.step >= settings.total_steps or has_run_out(progress, settings.early_stopping)

    def result(self) -> DenseModel:
        """Returns the model that is scored and saved, with averaged weights if they are averaged.

        One process can use it; all ranks call this together.
        """
        state = self.state
        model = state.average.averaged(state.model) if state.average is not None else unsharded(state.model)
        copy_buffers_from_main(model, self.processes)
        return model

    def scores(self) -> SetScores:
        """Returns the scores of the result as it is; validates unless this step has been validated."""
        step = self.state.progress.step
        if self.newest_scores is None or self.newest_scores[0] != step:
            self.newest_scores = step, self.score(self.result())
        return self.newest_scores[1]

    def about(self) -> dict[str, Any]:
        """Returns what results.json and config.json say of the run: its length, and what is special."""
        average, step = self.state.average, self.state.progress.step
        about: dict[str, Any] = {"step": step}
        if average is not None:
            about["weights"] = average.describe()
        if step < self.settings.total_steps:
            about["ended_early"] = early_end(self)
        return about


def train(run: Run) -> None:
    """Steps until the run is over; on a stop signal to any rank, saves and leaves by SystemExit."""
    state, settings, tracker, device = run.state, run.settings, run.tracker, run.device
    progress, is_relative = state.progress, TARGETS[state.stage.target].is_relative
    alignment = AlignmentWatch(settings.total_steps, progress.steps_in_a_row)
    meter = Meter(run.processes, is_relative, alignment)
    check = FiniteCheck.for_run(state.optimizer, device, run.processes)
    usual_size = UsualSize(state.stage.is_compiled)
    forward = wrap_ddp(StageAndModel(state.stage, state.model), run.processes, device)
    with stop_signals() as received:
        if is_validation_left(run):
            with meter.paused():
                validate(run)
        while not run.is_over():
            factor = lr_factor(progress.step, settings.total_steps, settings.schedule)
            momentum = momentum_of(progress.step, settings.total_steps, settings.schedule)
            set_learning_rate(state.optimizer, factor, momentum)
            micro_batches = settings.micro_batches_of(progress.step)
            for k in micro_batches:
                batch = meter.wait_for(run.batches).to(device)
                with sync_gradients(forward, enabled=k == micro_batches[-1]), usual_size(batch):
                    with torch.autocast(device.type, run.amp, enabled=run.amp is not None):
                        output = forward(batch, draw_generator(settings.seed, k))
                    start = check.gradient_of_loss(output, progress.step)
                    state.scaler.scale(output.loss / len(micro_batches)).backward(start)
                meter.add(output, sum(batch.all_counts), len(micro_batches))
            settle(run, check)  # the step before
            gradient_norm = update(state, settings.clip_norm, check)
            meter.add_step(gradient_norm, settings.clip_norm)
            progress.step += 1
            stopped = run.processes.max(received[0] if received else 0)  # all stop after the same step
            if check.at_once or stopped or settings.uses_weights_of(progress.step):
                settle(run, check)

            if settings.is_due(progress.step, settings.log_every):
                log_scalars(tracker, progress.step, meter, state.optimizer, gradient_norm, device)
                run.faults = tuple(meter.faults.values())
            if settings.is_due(progress.step, settings.image_every, at_end=settings.image_every > 0):
                tracker.pictures(progress.step, output.images)
            validates = settings.is_due(progress.step, settings.eval_every)
            saves = settings.is_due(progress.step, settings.save_every) or stopped
            with meter.paused():
                if saves or (validates and settings.saves_before_validation):
                    run.writer.save(state)
                if stopped and not run.is_over():
                    leave(run, stopped)
                if validates:
                    validate(run)
    if progress.step < settings.total_steps:
        tracker.say(f"{early_end(run)}; a larger early_stopping.patience, or null, continues it")


def update(state: TrainingState, clip_norm: float | None, check: FiniteCheck | None = None) -> Tensor:
    """Takes one optimizer step from the accumulated gradients; returns their norm [].

    Args:
        check: refuses a gradient that is not finite; None = a check that reads at once.
    """
    state.scaler.unscale_(state.optimizer)
    parameters = [*state.model.parameters(), *trained_parameters(state.stage)]
    gradient_norm = full(clip_gradients(parameters, clip_norm))
    (check or FiniteCheck()).take_step(state.optimizer, state.scaler, gradient_norm, state.progress.step)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    return gradient_norm


def settle(run: Run, check: FiniteCheck) -> None:
    """Raises a ValueError if the newest step was not finite; else averages its weights, once."""
    if check.settle() and run.state.average is not None:
        run.state.average.update(run.state.model, run.state.progress.step)


def is_validation_left(run: Run) -> bool:
    """Whether the run ended between the save of a step and the end of its validation."""
    progress, settings = run.state.progress, run.settings
    is_new = 0 < progress.step != progress.validated_step
    return is_new and settings.is_due(progress.step, settings.eval_every)


def validate(run: Run) -> None:
    """Scores the model, logs the scores, saves it if it is better than the saved one, and notes all this."""
    progress, primary = run.state.progress, run.state.stage.primary
    scores = run.scores()
    run.tracker.scalars(progress.step, flat_scores(scores))
    progress.validated_step = progress.step
    score = mean_score(scores, primary)
    if score is None:
        return
    note_score(progress, score, primary, run.settings.early_stopping.min_delta)
    if METRICS[primary].is_better(score, progress.best_score):
        progress.best_score = score
    if METRICS[primary].is_better(score, progress.saved_score):
        before, progress.saved_score = progress.saved_score, score
        if run.processes.max(int(not run.writer.save_best(run.state))):
            progress.saved_score = before  # a later model that is better than the one in the file is saved
    run.writer.save_progress(progress)


def early_end(run: Run) -> str:
    """Returns a line on why and where early stopping has ended the run."""
    progress, stage = run.state.progress, run.state.stage
    best = progress.best_score
    its_best = "no validation had a finite score" if best is None else f"its best is {best:.4f}"
    return (
        f"early stopping ended the run at step {progress.step} of {run.settings.total_steps}: "
        f"{stage.primary} has not improved in {progress.validations_without_gain} validations, {its_best}"
    )


def leave(run: Run, signal_number: int) -> None:
    """Waits for the checkpoint of this step, says so, and raises SystemExit with the code of the signal."""
    run.writer.wait()
    run.processes.wait()
    step, writer = run.state.progress.step, run.writer
    saved = "all saved" if writer.written_step == step else f"saved up to {writer.newest()}"
    run.tracker.say(f"stopped at step {step}, {saved}; the same command continues")
    run.tracker.close()
    raise SystemExit(128 + signal_number)


def draw_generator(seed: int, k: int) -> torch.Generator:
    """Returns the generator (on the CPU) for all that is random in micro-batch `k`."""
    state = np.random.SeedSequence([seed, k]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def flat_scores(scores: SetScores) -> dict[str, float]:
    """Returns the scores as val/<set>/<metric> for the log."""
    return {
        f"{SCORES}{name}/{key}": value
        for name, values in scores.items()
        for key, value in values.items()
        if key != "images"
    }


def mean_score(scores: SetScores, metric: str) -> float | None:
    """Returns the mean of a metric over the validation sets; None without any, NaN for a dead model.

    The score of a constant can be better than that of a model that has just begun to learn.
    """
    if any(is_dead(values) for values in scores.values()):
        return float("nan")
    return sum(values[metric] for values in scores.values()) / len(scores) if scores else None
