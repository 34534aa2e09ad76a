"""Train a teacher or a student: `python -m depthany.train stage=teacher`.

`run` makes the parts from the configuration; the loop itself is `depthany.training.loop.train`.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from depthany.config.entry import plain, run_entry
from depthany.data.batch import Batch
from depthany.data.left_out import summary
from depthany.data.loading.loader import read_batches
from depthany.data.sampler import MixedBatches
from depthany.models.files.loading import load_model
from depthany.models.model import DenseModel, save_model
from depthany.system.device import Compute, prepare_compute
from depthany.system.distributed import Processes, launched_processes, process_group
from depthany.system.files import write_atomically
from depthany.training import build
from depthany.training import run_dir as runs
from depthany.training.checkpoints.resume import take_over
from depthany.training.checkpoints.state import Parts
from depthany.training.checkpoints.writer import CheckpointWriter, NoWriter, ShardedWriter
from depthany.training.checks import ONLINE, check, check_processes
from depthany.training.loop import Loop, Scored, train
from depthany.training.parallel import is_sharded, shared_count, whole_model
from depthany.training.tracking import Silent, Tracker
from depthany.training.validation import evaluate


def main() -> None:
    """Console script `depthany-train`."""
    sys.exit(run_entry("train", run, help_with=("stage=student",)))


def run(cfg: DictConfig) -> int:
    """Builds the parts of a run, trains, scores and saves; returns the exit code."""
    processes = launched_processes()
    logging.basicConfig(level=logging.INFO if processes.is_main else logging.ERROR, format="%(message)s")
    cfg = check(cfg)
    check_processes(cfg, processes)
    compute = prepare_compute(cfg.device, cfg.precision, cfg.threads, processes)
    with process_group(processes, compute.device):
        if processes.from_main(runs.is_finished(Path(cfg.run_dir)) and not cfg.overwrite):
            if processes.is_main:
                print(f"{cfg.run_dir} holds a finished run: pass overwrite=true or another run_dir=...")
            return 0
        run_together(cfg, processes, compute)
    return 0


def run_together(cfg: DictConfig, processes: Processes, compute: Compute) -> None:
    """Runs the training in every process of the group."""
    run_dir, device, amp = Path(cfg.run_dir), compute.device, compute.amp
    online = cfg.pseudo_labels == ONLINE
    teacher = (
        load_model(cfg.stage.teacher, device if online else "cpu") if cfg.stage.name == "student" else None
    )
    dataset, val_sets = build.build_training_set(cfg, teacher), build.build_sets(cfg.data.val)
    parts = build.build_parts(cfg, teacher if online else None, device, amp, processes)
    sampler = build.build_sampler(cfg, dataset, processes)
    loop = build.build_loop(cfg, micro_batches=len(sampler))
    with runs.locked(run_dir) if processes.is_main else nullcontext():
        tracker = begin(cfg, parts, sampler, loop.total_steps, processes)
        tracker.say(build.describe(parts, dataset, loop.total_steps, device, amp, processes.size))
        for line in build.dataset_notes(cfg, dataset):
            tracker.say(line)
        unreadable, share = run_dir / runs.UNREADABLE_FILE, cfg.data.max_unreadable_share
        count = shared_count(processes, sampler, unreadable, share)
        pin, timeout_s = device.type == "cuda", cfg.data.read_timeout or None
        batches = read_batches(dataset, sampler, cfg.workers, pin, count, timeout_s)

        def score(network: DenseModel) -> Scored:
            size, convert = cfg.crop_size, cfg.data.convert_images
            return evaluate(network, val_sets, size, device, amp, convert_images=convert, processes=processes)

        try:
            own = train_run(cfg, loop, parts, batches, tracker, score, device, amp, processes)
            scores = {cfg.stage.name: own}
            if teacher is not None:
                scores["teacher"] = score(whole_model(teacher).to(device))
            model = whole_model(parts.model)
        finally:
            tracker.close()
        if processes.is_main:
            finish(run_dir, model, parts.state.step, scores, settings_of(cfg, sampler), tracker)


def begin(
    cfg: DictConfig, parts: Parts, sampler: MixedBatches, total_steps: int, processes: Processes
) -> Tracker | Silent:
    """Claim the run directory and take over its last checkpoint, where it has one; gives the log."""
    run_dir, settings = Path(cfg.run_dir), settings_of(cfg, sampler)
    if processes.is_main:
        if cfg.overwrite:
            runs.clear(run_dir)  # only now that everything the new run needs is known to be there
        runs.claim(run_dir, settings)
        runs.remove_half_written(run_dir)
    processes.wait()
    take_over(runs.checkpoint_dir(run_dir), parts, processes)
    sampler.start = parts.state.step * cfg.accumulate
    if not processes.is_main:
        return Silent()
    text, goes_on = OmegaConf.to_yaml(OmegaConf.create(settings)), cfg.if_save_fails == "continue"
    return Tracker(run_dir, parts.state.step, total_steps, text, goes_on)


def settings_of(cfg: DictConfig, sampler: MixedBatches) -> dict[str, Any]:
    """The configuration and the numbers of images found: with others the order of all would be another."""
    labeled, unlabeled = sampler.counts
    return plain(cfg) | {"images_found": {"labeled": labeled, "unlabeled": unlabeled}}


def train_run(
    cfg: DictConfig,
    loop: Loop,
    parts: Parts,
    batches: Iterator[Batch],
    tracker: Tracker | Silent,
    score: Callable[[DenseModel], Scored],
    device: torch.device,
    amp: torch.dtype | None,
    processes: Processes,
) -> Scored:
    """`train` with its validation and files as the configuration says; gives the scores of the last step."""
    newest: dict[int, Scored] = {}

    def validate() -> Scored:
        newest.clear()
        newest[parts.state.step] = score(whole_model(parts.model))
        return newest[parts.state.step]

    compiled = torch.compile(parts.model) if cfg.compile else None
    with open_writer(cfg, parts, tracker, processes) as saves:
        train(parts, batches, tracker, validate, saves, loop, device, amp, compiled, processes)
    if parts.state.step not in newest:  # killed after the last step
        validate()
    return newest[parts.state.step]


def open_writer(
    cfg: DictConfig, parts: Parts, tracker: Tracker | Silent, processes: Processes
) -> CheckpointWriter | NoWriter:
    """What writes the checkpoints of this process."""
    folder, keep, if_fails = runs.checkpoint_dir(Path(cfg.run_dir)), cfg.keep_checkpoints, cfg.if_save_fails
    if is_sharded(parts.model):
        return ShardedWriter(folder, keep, if_fails, tracker.say, parts.state.step, processes)
    if not processes.is_main:
        return NoWriter()
    return CheckpointWriter(folder, keep, if_fails, tracker.say, parts.state.step)


def finish(
    run_dir: Path,
    model: DenseModel,
    step: int,
    scores: dict[str, Scored],
    settings: dict[str, Any],
    tracker: Tracker | Silent,
) -> None:
    """Write results and model, the model last since it marks the run as finished, and print the table."""
    results = json.dumps({"step": step, "scores": scores}, indent=2) + "\n"
    training = {"step": step, "settings": settings}
    try:
        write_atomically(run_dir / runs.RESULTS_FILE, lambda path: path.write_text(results))
        save_model(model, run_dir, extra={"training": training})
    except ValueError as error:
        raise ValueError(
            f"{error}; the run is not finished: make room, and the same command goes on"
        ) from error
    if next(iter(scores.values())):
        tracker.table("validation: fitted to 1/depth by scale and shift per image", scores)
    if line := summary(run_dir / runs.UNREADABLE_FILE):
        tracker.say(line)
    tracker.say(
        f"model: {run_dir / 'model.safetensors'}    curves and pictures: tensorboard --logdir "
        f"{run_dir.parent}"
    )


if __name__ == "__main__":
    main()
