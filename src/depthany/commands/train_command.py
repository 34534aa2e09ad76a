"""The command `train`: builds the objects of a run from the configuration, and starts `training/loop.py`."""

import json
import logging
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from depthany.config.given import given_words
from depthany.data.batch import Batch
from depthany.data.dataset import TrainingSet
from depthany.data.left_out import require_some_used
from depthany.data.loading.loader import plan_prefetch, read_batches
from depthany.data.sampler import MixedBatches
from depthany.system.device import (
    Compute,
    deterministic_algorithms,
    prepare_compute,
    require_cuda_graphs,
)
from depthany.system.distributed import Processes, launched_processes, process_group
from depthany.training import build
from depthany.training import run_dir as runs
from depthany.training.changes import FREE, Changes, continued, defaults_of, listed
from depthany.training.checkpoints.resume import resume_latest
from depthany.training.checkpoints.state import TrainingState
from depthany.training.checkpoints.writer import CheckpointWriter, NullWriter, ShardedWriter
from depthany.training.checks import check, check_processes, roots_to_name
from depthany.training.class_model import norm_notes, starting_line
from depthany.training.examples import Examples
from depthany.training.finish import finish
from depthany.training.first_line import first_line, places_line
from depthany.training.inputs import saved_settings, settings_without_data
from depthany.training.loop import LoopSettings, Run, SetScores, train
from depthany.training.memory import explained_out_of_memory
from depthany.training.next_command import NOTHING, Given, folder_of_images
from depthany.training.parallel import is_sharded, shared_count, unsharded
from depthany.training.regional import choose_compile, compile_run, uncompiled
from depthany.training.run_threads import keep_threads
from depthany.training.settings import ONLINE, TrainSettings
from depthany.training.stages.table import STAGES
from depthany.training.stored_labels import label_once
from depthany.training.tracking import NullTracker, Tracker
from depthany.training.validation import alignment_of, evaluate, input_of_validation, metrics_of
from depthany.training.validation_check import check_sets


def run(cfg: DictConfig) -> int:
    """Checks the configuration, and trains unless the result is there; returns the exit code."""
    processes = launched_processes()
    logging.basicConfig(level=logging.INFO if processes.is_main else logging.ERROR, format="%(message)s")
    unlabeled = roots_to_name(cfg)
    settings = check(cfg)
    check_processes(settings, processes)
    compute = prepare_compute(settings.device, settings.precision, settings.threads, processes)
    require_cuda_graphs(settings.cuda_graphs, compute.device)
    with process_group(processes, compute.device), deterministic_algorithms(settings.deterministic):
        if is_to_train(settings, processes):
            given = Given(tuple(given_words()), folder_of_images(settings.data), unlabeled)
            run_stage(settings, compute, processes, given)
    return 0


def is_to_train(settings: TrainSettings, processes: Processes) -> bool:
    """Whether the run directory still lacks the model of these settings; reads no images.

    Raises:
        ValueError: the directory is not a run's, or holds a finished run with other settings.
    """
    run_dir = Path(settings.run_dir)
    processes.on_main(partial(runs.require_own, run_dir, settings.overwrite))
    if settings.overwrite:
        return True

    def look() -> Changes | None:
        if runs.finished(run_dir) is None:
            return None
        return runs.is_complete(run_dir, settings_without_data(settings), defaults_of(settings))

    changes = processes.on_main(look)
    if changes is not None and processes.is_main:
        print(already_there(run_dir, changes))
    return changes is None


def run_stage(
    settings: TrainSettings, compute: Compute, processes: Processes, given: Given = NOTHING
) -> None:
    """Builds the objects of a run, trains, scores and saves; `given` is for the next command."""
    run_dir, device, amp = Path(settings.run_dir), compute.device, compute.amp
    online = settings.pseudo_labels == ONLINE
    teacher = build.load_teacher(settings, device if online else "cpu")
    dataset = build.build_training_set(settings, teacher)
    val_sets = build.build_sets(settings.data.val, "data.val")
    notes = build.dataset_notes(settings, dataset, val_sets)  # before anything is written
    labels_views = teacher if online else None
    state = build.build_state(settings, labels_views, device, amp, processes, dataset.labeled)
    sampler = build.build_sampler(settings, dataset, processes)
    loop = build.build_loop_settings(settings, micro_batches=len(sampler))
    reading = reading_of_validation(settings)
    prefetch, lines = plan_prefetch(dataset, sampler, settings.workers, processes)
    if val_sets:
        notes += check_sets(val_sets, alignment_of(state.model.quantity), processes=processes, **reading)
    notes += [*starting_line(settings), *norm_notes(settings, state.model, processes)]

    with runs.locked(run_dir) if processes.is_main else nullcontext():
        saved = saved_settings(settings, sampler, dataset, processes)
        changes = begin_or_resume(settings, saved, state, loop, processes)
        if changes is None:
            return
        notes += keep_threads(state.progress, settings.threads, compute)
        notes += [*lines, *label_once(settings, dataset, teacher, compute, processes)]
        sampler.start = state.progress.step * settings.accumulate
        tracker = open_tracker(settings, saved, state, loop.total_steps, processes)
        stage = settings.stage.name
        tracker.say(first_line(stage, state, dataset, loop.total_steps, device, amp, processes.size))
        tracker.say(places_line(run_dir, tracker.how_to_look))
        notes += compile_if_chosen(settings, state, loop.total_steps, device)
        for line in (*continued(changes, state.progress.step, loop.total_steps, loop.schedule), *notes):
            tracker.say(line)
        batches = open_batches(settings, dataset, sampler, prefetch, tracker, device, processes)
        pictures = open_pictures(settings, tracker, state)
        score = open_scoring(settings, state, dataset, val_sets, amp, tracker, processes)
        try:
            with open_writer(settings, state, tracker, processes) as writer:
                if changes.validation:
                    writer.save(state)  # without the old best score, which a restart must not pick up
                    writer.save_progress(state.progress)
                shown = partial(score, pictures=pictures)
                training = Run(state, batches, shown, loop, tracker, writer, device, amp, processes)
                with explained_out_of_memory(settings, state.progress):
                    train(training)
            read = sampler.drawn_before(state.progress.step * settings.accumulate)
            processes.on_main(partial(require_some_used, run_dir / runs.UNREADABLE_FILE, read))
            scores = {settings.stage.name: training.scores()}
            if teacher is not None:
                of_teacher = partial(score, say=lambda line: tracker.say(f"{line} (the teacher's scores)"))
                scores["teacher"] = of_teacher(unsharded(teacher).to(device))
            model = training.result()
            tracker.summary(saved, scores[settings.stage.name])
        finally:
            tracker.close()
        if processes.is_main:
            command, faults = state.stage.next_command(run_dir, given), training.faults
            finish(run_dir, model, training.about(), scores, saved, faults, tracker, pictures, command)


def open_scoring(
    settings: TrainSettings,
    state: TrainingState,
    dataset: TrainingSet,
    val_sets: dict[str, Any],
    amp: torch.dtype | None,
    tracker: Tracker | NullTracker,
    processes: Processes,
) -> partial[SetScores]:
    """Returns the function that scores a model on the validation sets."""
    return partial(
        uncompiled(evaluate) if state.stage.is_compiled else evaluate,
        sets=val_sets,
        amp=amp,
        processes=processes,
        metrics=metrics_of(state.stage, settings.eval_metrics),
        say=tracker.say,
        **reading_of_validation(settings),
        **input_of_validation(dataset) | dict(state.stage.validation_input(settings.stage)),
    )


def compile_if_chosen(
    settings: TrainSettings, state: TrainingState, total_steps: int, device: torch.device
) -> list[str]:
    """Compiles the regions of the run if the settings say so; returns a line about the choice, if any."""
    left = total_steps - state.progress.step
    chosen, line = choose_compile(settings.compile, device, left, settings.deterministic)
    if chosen:
        compile_run(state.model, state.stage, settings.cuda_graphs)
    return [line] if line else []


def open_pictures(settings: TrainSettings, tracker: Tracker | NullTracker, state: TrainingState) -> Examples:
    """Returns the object that draws the pictures of a validation; `image_every=0` leaves out examples."""

    def log(title: str, sheet: NDArray[np.uint8]) -> None:
        tracker.picture(title, sheet, state.progress.step)

    return Examples(log) if settings.image_every else Examples(log, per_set=0)


def reading_of_validation(settings: TrainSettings) -> dict[str, Any]:
    """Returns how to read the images of the validation sets: like those of the training sets."""
    data = settings.data
    share = data.max_unreadable_share if data.unreadable == "skip" else None
    return {"convert_images": data.convert_images, "max_unreadable_share": share}


def begin_or_resume(
    settings: TrainSettings,
    saved: dict[str, Any],
    state: TrainingState,
    loop: LoopSettings,
    processes: Processes,
) -> Changes | None:
    """Claims the run directory, and loads the newest checkpoint in it into `state`.

    Returns:
        What has changed since the run began; None if its result exists and there is nothing to train.
    """
    run_dir = Path(settings.run_dir)
    if settings.overwrite and processes.is_main:
        # only now that everything the new run needs is known to be there
        runs.clear(run_dir, in_use=Path(settings.pseudo_labels))
    claim = partial(runs.claim, run_dir, saved, defaults_of(settings), loop.total_steps)
    changes = processes.on_main(claim)
    if changes is None:
        if processes.is_main:
            print(already_there(run_dir, Changes()))
        return None
    resume_latest(runs.checkpoint_dir(run_dir), state, processes)
    if changes.validation:
        state.progress.forget_scores()
    return changes


def already_there(run_dir: Path, changes: Changes) -> str:
    """Returns the line about a finished run, and about changed settings that have no effect on it."""
    free = changes.of(FREE)
    unused = f" ({listed(free)}: no effect on what is trained)" if free else ""
    model = runs.finished(run_dir)
    ended, more = "", "raise steps, epochs or passes"
    if model is not None and model.ended_early:
        ended = f", which early stopping ended at step {model.step}"
        more = "raise early_stopping.patience, or pass null,"
    return (
        f"{run_dir} holds a finished run with these settings{unused}{ended}: {more} to continue it, or pass "
        "overwrite=true or another run_dir=... to train from scratch"
    )


def open_tracker(
    settings: TrainSettings,
    saved: dict[str, Any],
    state: TrainingState,
    total_steps: int,
    processes: Processes,
) -> Tracker | NullTracker:
    """Opens the log of this rank."""
    if not processes.is_main:
        return NullTracker()
    text, goes_on = OmegaConf.to_yaml(OmegaConf.create(saved)), settings.if_save_fails == "continue"
    run_dir, progress = Path(settings.run_dir), state.progress
    return Tracker(
        run_dir, progress.step, total_steps, text, goes_on, settings.loggers, progress.validated_step
    )


def open_batches(
    settings: TrainSettings,
    dataset: TrainingSet,
    sampler: MixedBatches,
    prefetch: int,
    tracker: Tracker | NullTracker,
    device: torch.device,
    processes: Processes,
) -> Iterator[Batch]:
    """Starts to read the micro-batches of this rank, and counts the images that are left out."""
    unreadable, data = Path(settings.run_dir) / runs.UNREADABLE_FILE, settings.data
    goes_on = settings.if_save_fails == "continue"
    count = shared_count(processes, sampler, unreadable, data.max_unreadable_share, goes_on, tracker.say)
    pin, timeout_s = device.type == "cuda", data.read_timeout or None
    return read_batches(dataset, sampler, settings.workers, pin, count, timeout_s, prefetch)


def open_writer(
    settings: TrainSettings, state: TrainingState, tracker: Tracker | NullTracker, processes: Processes
) -> CheckpointWriter | NullWriter:
    """Opens what writes the checkpoints of this rank."""
    folder, step = runs.checkpoint_dir(Path(settings.run_dir)), state.progress.step
    keep, if_fails = settings.keep_checkpoints, settings.if_save_fails
    if is_sharded(state.model):
        return ShardedWriter(folder, keep, if_fails, tracker.say, step, processes)
    if not processes.is_main:
        return NullWriter()
    return CheckpointWriter(folder, keep, if_fails, tracker.say, step)


def primary_scores(cfg: DictConfig) -> dict[str, float]:
    """Returns the stage's primary metric on every validation set, for the table of a sweep."""
    results, primary = Path(cfg.run_dir) / runs.RESULTS_FILE, STAGES[cfg.stage.name].primary
    of_stage = json.loads(results.read_text())["scores"][cfg.stage.name]
    return {f"{name} {primary}": scores[primary] for name, scores in of_stage.items()}
