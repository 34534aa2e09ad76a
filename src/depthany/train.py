"""Train a teacher or a student: `python -m depthany.train stage=teacher`.

`run` makes the parts from the configuration, `train` is the loop.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from depthany import run_dir as runs
from depthany import wiring
from depthany.checkpoint import Parts
from depthany.checkpoint_writer import CheckpointWriter, NoWriter, ShardedWriter
from depthany.config import plain, run_entry
from depthany.data.dataset import Batch
from depthany.data.loader import read_batches
from depthany.data.report import summary
from depthany.data.sampler import MixedBatches
from depthany.distributed import ALONE, Processes, full, joined, launched
from depthany.files import write_atomically
from depthany.interrupt import stop_signals
from depthany.models.depth_model import DepthModel, save_model
from depthany.models.loading import load_model
from depthany.optim import schedule, set_learning_rate
from depthany.parallel import Whole, averaging, exchanged, is_sharded, shared_count, whole_model
from depthany.precision import choose_amp, choose_device, keep_freed_memory
from depthany.resume import take_over
from depthany.stages import StageOutput, trained_parameters
from depthany.tracking import Meter, Silent, Tracker, log_scalars
from depthany.validation import Scores, evaluate

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

    @classmethod
    def of(cls, cfg: DictConfig, micro_batches: int) -> "Loop":
        """From the configuration."""
        return cls(
            micro_batches=micro_batches,
            accumulate=cfg.accumulate,
            seed=cfg.seed,
            warmup_steps=cfg.optimizer.warmup_steps,
            decay_power=cfg.optimizer.decay_power,
            clip_norm=cfg.optimizer.clip_norm,
            log_every=cfg.log_every,
            image_every=cfg.image_every,
            eval_every=cfg.eval_every,
            save_every=cfg.save_every,
        )

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
    """val/<set>/<metric> for the log."""
    return {
        f"val/{name}/{key}": values[key] for name, values in scores.items() for key in ("abs_rel", "delta1")
    }


def mean_abs_rel(scores: Scored) -> float:
    """Mean AbsRel over the validation sets; infinite where there is none."""
    return sum(values["abs_rel"] for values in scores.values()) / len(scores) if scores else float("inf")


def main() -> None:
    """Console script `depthany-train`."""
    sys.exit(run_entry("train", run, help_with=("stage=student",)))


def run(cfg: DictConfig) -> int:
    """Make the parts of a run, train, score and save; the exit code."""
    processes = launched()
    logging.basicConfig(level=logging.INFO if processes.is_main else logging.ERROR, format="%(message)s")
    cfg = wiring.check(cfg)
    wiring.check_processes(cfg, processes)
    device = choose_device(cfg.device, processes.local_rank if processes.size > 1 else None)
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    keep_freed_memory()
    with joined(processes, device):
        if processes.from_main(runs.is_finished(Path(cfg.run_dir)) and not cfg.overwrite):
            if processes.is_main:
                print(f"{cfg.run_dir} holds a finished run: pass overwrite=true or another run_dir=...")
            return 0
        run_together(cfg, processes, device)
    return 0


def run_together(cfg: DictConfig, processes: Processes, device: torch.device) -> None:
    """`run` in each of its processes, once they have met."""
    run_dir, amp = Path(cfg.run_dir), choose_amp(cfg.precision, device)
    online = cfg.pseudo_labels == wiring.ONLINE
    teacher = (
        load_model(cfg.stage.teacher, device if online else "cpu") if cfg.stage.name == "student" else None
    )
    dataset, val_sets = wiring.build_training_set(cfg, teacher), wiring.build_sets(cfg.data.val)
    parts = wiring.build_parts(cfg, teacher if online else None, device, amp, processes)
    sampler = wiring.build_sampler(cfg, dataset, processes)
    loop = Loop.of(cfg, micro_batches=len(sampler))
    with runs.locked(run_dir) if processes.is_main else nullcontext():
        tracker = begin(cfg, parts, sampler, loop.total_steps, processes)
        tracker.say(wiring.describe(parts, dataset, loop.total_steps, device, amp, processes.size))
        for line in wiring.dataset_notes(cfg, dataset):
            tracker.say(line)
        unreadable, share = run_dir / runs.UNREADABLE_FILE, cfg.data.max_unreadable_share
        count = shared_count(processes, sampler, unreadable, share)
        pin, timeout_s = device.type == "cuda", cfg.data.read_timeout or None
        batches = read_batches(dataset, sampler, cfg.workers, pin, count, timeout_s)

        def score(network: DepthModel) -> Scored:
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
    score: Callable[[DepthModel], Scored],
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
    model: DepthModel,
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
