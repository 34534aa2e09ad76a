"""Train a stage such as the teacher or the student: `python -m depthany.train stage=teacher`.

`run` builds the objects from the configuration; the loop itself is `depthany.training.loop.train`.
"""

import json
import logging
import sys
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from depthany.config.entry import run_entry
from depthany.data.left_out import summary
from depthany.data.loading.loader import read_batches
from depthany.data.sampler import MixedBatches
from depthany.data.transforms import crop_shape
from depthany.metrics.table import DEFAULT_METRICS
from depthany.models.model import DenseModel, save_model
from depthany.system.device import Compute, deterministic_algorithms, prepare_compute
from depthany.system.distributed import Processes, launched_processes, process_group
from depthany.system.files import write_atomically
from depthany.training import build
from depthany.training import run_dir as runs
from depthany.training.checkpoints.resume import resume_latest
from depthany.training.checkpoints.state import TrainingState
from depthany.training.checkpoints.writer import CheckpointWriter, NullWriter, ShardedWriter
from depthany.training.checks import check, check_processes
from depthany.training.loop import Run, SetScores, train
from depthany.training.parallel import is_sharded, shared_count, unsharded
from depthany.training.settings import ONLINE, TrainSettings
from depthany.training.stages.table import STAGES
from depthany.training.tracking import NullTracker, Tracker
from depthany.training.validation import evaluate


def main() -> None:
    """Runs the console script `depthany-train`."""
    sys.exit(run_entry("train", run, help_with=("stage=student",), output="run_dir", scores=primary_scores))


def run(cfg: DictConfig) -> int:
    """Checks the configuration, and trains unless the run is finished; returns the exit code."""
    processes = launched_processes()
    logging.basicConfig(level=logging.INFO if processes.is_main else logging.ERROR, format="%(message)s")
    settings = check(cfg)
    check_processes(settings, processes)
    compute = prepare_compute(settings.device, settings.precision, settings.threads, processes)
    with process_group(processes, compute.device), deterministic_algorithms(settings.deterministic):
        if processes.from_main(runs.is_finished(Path(settings.run_dir)) and not settings.overwrite):
            if processes.is_main:
                print(f"{settings.run_dir} holds a finished run: pass overwrite=true or another run_dir=...")
            return 0
        run_stage(settings, compute, processes)
    return 0


def run_stage(settings: TrainSettings, compute: Compute, processes: Processes) -> None:
    """Builds the objects of a run, trains, scores and saves."""
    run_dir, device, amp = Path(settings.run_dir), compute.device, compute.amp
    online = settings.pseudo_labels == ONLINE
    teacher = build.load_teacher(settings, device if online else "cpu")
    dataset = build.build_training_set(settings, teacher)
    val_sets = build.build_sets(settings.data.val, "data.val")
    state = build.build_state(settings, teacher if online else None, device, amp, processes)
    sampler = build.build_sampler(settings, dataset, processes)
    loop = build.build_loop_settings(settings, micro_batches=len(sampler))

    with runs.locked(run_dir) if processes.is_main else nullcontext():
        saved = saved_settings(settings, sampler)
        prepare_run_dir(run_dir, saved, settings.overwrite, processes)
        resume_latest(runs.checkpoint_dir(run_dir), state, processes)
        sampler.start = state.progress.step * settings.accumulate
        tracker = open_tracker(settings, saved, state, loop.total_steps, processes)
        tracker.say(build.describe(state, dataset, loop.total_steps, device, amp, processes.size))
        for line in build.dataset_notes(settings, dataset):
            tracker.say(line)
        unreadable, share = run_dir / runs.UNREADABLE_FILE, settings.data.max_unreadable_share
        count = shared_count(processes, sampler, unreadable, share)
        pin, timeout_s = device.type == "cuda", settings.data.read_timeout or None
        batches = read_batches(dataset, sampler, settings.workers, pin, count, timeout_s)
        compiled = torch.compile(state.model) if settings.compile else None
        score = partial(
            evaluate,
            sets=val_sets,
            input_size=min(crop_shape(settings.crop_size)),
            amp=amp,
            convert_images=settings.data.convert_images,
            processes=processes,
            metrics=tuple(dict.fromkeys((*DEFAULT_METRICS["depth"], state.stage.primary))),
            say=tracker.say,
        )
        try:
            with open_writer(settings, state, tracker, processes) as writer:
                training = Run(state, batches, score, loop, tracker, writer, device, amp, compiled, processes)
                train(training)
            scores = {settings.stage.name: training.scores()}
            if teacher is not None:
                of_teacher = partial(score, say=lambda line: tracker.say(f"{line} (the teacher's scores)"))
                scores["teacher"] = of_teacher(unsharded(teacher).to(device))
            model = unsharded(state.model)
        finally:
            tracker.close()
        if processes.is_main:
            finish(run_dir, model, state.progress.step, scores, saved, tracker)


def saved_settings(settings: TrainSettings, sampler: MixedBatches) -> dict[str, Any]:
    """Returns the settings with the numbers of images found: with other numbers their order would differ."""
    labeled, unlabeled = sampler.counts
    return asdict(settings) | {"images_found": {"labeled": labeled, "unlabeled": unlabeled}}


def prepare_run_dir(run_dir: Path, saved: dict[str, Any], overwrite: bool, processes: Processes) -> None:
    """Claims the run directory on rank 0, and deletes what a killed run has left half written."""
    if processes.is_main:
        if overwrite:
            runs.clear(run_dir)  # only now that everything the new run needs is known to be there
        runs.claim(run_dir, saved)
        runs.remove_half_written(run_dir)
    processes.wait()


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
    return Tracker(Path(settings.run_dir), state.progress.step, total_steps, text, goes_on)


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


def finish(
    run_dir: Path,
    model: DenseModel,
    step: int,
    scores: dict[str, SetScores],
    saved: dict[str, Any],
    tracker: Tracker | NullTracker,
) -> None:
    """Writes results and model, the model last since it marks the run as finished, and prints the table."""
    results = json.dumps({"step": step, "scores": scores}, indent=2) + "\n"
    training = {"step": step, "settings": saved}
    try:
        write_atomically(run_dir / runs.RESULTS_FILE, lambda path: path.write_text(results))
        save_model(model, run_dir, extra={"training": training})
    except ValueError as error:
        raise ValueError(
            f"{error}; the run is not finished: make room, and the same command goes on"
        ) from error
    if next(iter(scores.values())):
        fitted = model.quantity.kind == "disparity"
        how = "fitted to 1/depth by scale and shift per image" if fitted else model.quantity.describe()
        tracker.table(f"validation: {how}", scores)
    if line := summary(run_dir / runs.UNREADABLE_FILE):
        tracker.say(line)
    tracker.say(
        f"model: {run_dir / 'model.safetensors'}    curves and pictures: tensorboard --logdir "
        f"{run_dir.parent}"
    )


def primary_scores(cfg: DictConfig) -> dict[str, float]:
    """Returns the stage's primary metric on every validation set, for the table of a sweep."""
    results, primary = Path(cfg.run_dir) / runs.RESULTS_FILE, STAGES[cfg.stage.name].primary
    of_stage = json.loads(results.read_text())["scores"][cfg.stage.name]
    return {f"{name} {primary}": scores[primary] for name, scores in of_stage.items()}


if __name__ == "__main__":
    main()
