"""Label unlabeled images once for any number of students: `python -m depthany.pseudo_label teacher=...`."""

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from filelock import FileLock
from omegaconf import DictConfig

from depthany import load_model
from depthany.checking.pseudo_labeled import LabeledImages
from depthany.checking.sheet import draw_sheet
from depthany.config.entry import require, run_entry, typed
from depthany.config.schema import PseudoLabelSettings
from depthany.data.pseudo_labels.store import (
    RESIZE,
    UNREADABLE,
    StoreSettings,
    begin_store,
    describe_sets,
    differences,
    finish_store,
    read_manifest,
)
from depthany.data.pseudo_labels.verify import verify_shards
from depthany.display.progress import Bar, bar_of_all
from depthany.evaluation.predictors import weights_sha256
from depthany.inference.labeling import RESOLUTIONS, Claims, Labeler, Reading, Tally
from depthany.models.fast import prepare_for_inference
from depthany.models.model import DepthModel
from depthany.system.device import choose_amp, choose_device, keep_freed_memory
from depthany.system.distributed import Processes, joined, launched
from depthany.system.files import require_writable
from depthany.training import build

SHEET = "contact.jpg"
_PROJECT_AFTER_S = 20.0  # a first projection; others follow when twice as much was done


def main() -> None:
    """Console script `depthany-pseudo-label`."""
    sys.exit(run_entry("pseudo_label", run, literal=("teacher", "out", "verify", "inspect")))


def run(cfg: DictConfig) -> int:
    """Label, verify or inspect, as the configuration says; the exit code."""
    cfg = check(cfg)
    cv2.setNumThreads(1)  # images are read in threads of ours; more would take the cores from the teacher
    processes = launched()
    if cfg.verify is not None or cfg.inspect is not None:
        if not processes.is_main:
            return 0  # one of them looks at the store
        return verify(Path(cfg.verify)) if cfg.verify is not None else inspect(Path(cfg.inspect), cfg)
    device = choose_device(cfg.device, processes.local_rank if processes.size > 1 else None)
    with joined(processes, device):
        return label(cfg, processes, device)


def check(cfg: DictConfig) -> DictConfig:
    """The configuration with its types checked.

    Raises:
        ValueError: (or one of OmegaConf's errors) a setting has a wrong type, no value, or a value that
            cannot be.
    """
    cfg = typed(cfg, PseudoLabelSettings)
    if cfg.verify is not None and cfg.inspect is not None:
        raise ValueError("verify= and inspect= were both given: one at a time")
    for key in ("inspect_images", "shard_size", "batch_size", "workers", "threads"):
        if cfg[key] is not None and cfg[key] < 1:
            raise ValueError(f"{key}={cfg[key]}: expected 1 or more")
    if cfg.resolution not in RESOLUTIONS:
        raise ValueError(f"unknown resolution {cfg.resolution!r}; choose from {', '.join(RESOLUTIONS)}")
    if cfg.data.unreadable not in ("error", "skip"):
        raise ValueError(f"unknown data.unreadable {cfg.data.unreadable!r}; choose from error, skip")
    require(cfg, ignore=("data",) if cfg.verify is not None else ("data.labeled", "data.val"))
    return cfg


def label(cfg: DictConfig, processes: Processes, device: torch.device) -> int:
    """Label every image that has no label yet and that no other worker has in hand."""
    out = Path(cfg.out)
    if processes.is_main:
        require_writable(out)
    dtype = choose_amp(cfg.precision, device) or torch.float32
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    keep_freed_memory()

    teacher = load_model(cfg.teacher, device)
    if teacher.max_depth is not None:
        raise ValueError(f"teacher={cfg.teacher} gives metres; pseudo-labels are disparity: pass another one")
    sets = open_sets(cfg)
    size = teacher.input_size if cfg.input_size is None else cfg.input_size
    claims = begin(out, build_header(cfg, teacher, size, dtype, sets), processes)
    images = sum(len(each) for each in sets.values())
    wanted = sum(shard.last - shard.first for shard in claims.open)
    if processes.is_main:
        told = f", {processes.size} processes" if processes.size > 1 else ""
        print(f"{describe(teacher, size, images, images - wanted, device, dtype)}{told}", flush=True)

    with bar_of_all(processes, "images", wanted) as advance:
        reading = Reading(
            size,
            cfg.data.convert_images,
            cfg.data.min_side,
            cfg.data.unreadable,
            cfg.data.max_unreadable_share,
        )
        labeler = Labeler(
            prepare_for_inference(teacher, dtype),
            sets,
            reading,
            cfg.resolution == "half",
            cfg.batch_size,
            cfg.workers,
            Telling(advance, processes.is_main),
        )
        tally = labeler.run(out, claims)
        processes.wait_however_long("labels")  # for the last shards of others
        advance(0)
    return finish(out, tally, processes)


def begin(out: Path, header: StoreSettings, processes: Processes) -> Claims:
    """Begin the store, or make sure that it is the same one; gives the shards that are still to be done."""
    if processes.is_main:
        with FileLock(out / ".lock"):  # workers that start at once would write one partial file
            begin_store(out, header)
    processes.wait()
    begin_store(out, header)
    claims = Claims(out, header)
    processes.wait()  # before the first shard of another is done, so that all count the same
    return claims


def finish(out: Path, tally: Tally, processes: Processes) -> int:
    """Complete the store and tell what all have done; the exit code."""
    tallies = processes.gather(tally.counts())
    if not processes.is_main:
        return 0
    with FileLock(out / ".lock"):
        manifest = finish_store(out)
    return report(out, tally.of_all(tallies), manifest)


def open_sets(cfg: DictConfig) -> dict[str, Any]:
    """The unlabeled sets that have a root, by name."""
    sets = build.build_sets(cfg.data.unlabeled)
    if not sets:
        keys = " ".join(f"data.unlabeled.{name}.root=..." for name in cfg.data.unlabeled)
        raise ValueError(f"no unlabeled set has a root: set one of {keys or 'another data=...'}")
    return sets


def build_header(
    cfg: DictConfig, teacher: DepthModel, size: int, dtype: torch.dtype, sets: dict[str, Any]
) -> StoreSettings:
    """All that the labels depend on."""
    preprocessing = {
        "input_size": size,
        "resize": RESIZE,
        "resolution": cfg.resolution,
        "precision": str(dtype).removeprefix("torch."),
        "batch_size": cfg.batch_size,
        "convert_images": cfg.data.convert_images,
        "min_side": cfg.data.min_side,
    }
    about = {"weights_sha256": weights_sha256(teacher), "model": teacher.config}
    return StoreSettings(about, preprocessing, cfg.shard_size, describe_sets(sets))


def describe(
    teacher: DepthModel, size: int, images: int, done: int, device: torch.device, dtype: torch.dtype
) -> str:
    """One line on what is about to happen."""
    number_format = str(dtype).removeprefix("torch.")
    before = f" ({done} of them are in shards that are done)" if done else ""
    return (
        f"{teacher.config['encoder']} labels {images} images{before} at input_size={size}, {device.type} in "
        f"{number_format}"
    )


class Telling:
    """Moves the bar, and now and then says what the work would be for the paper's 62 million images.

    Args:
        projects: whether this process says so; it does of its own rate.
    """

    def __init__(self, advance: Callable[[int], object], projects: bool) -> None:
        self.advance, self.next_s = advance, _PROJECT_AFTER_S if projects else math.inf

    def __call__(self, images: int, tally: Tally) -> None:
        """So many more images are done."""
        self.advance(images)
        if time.monotonic() - tally.began > self.next_s:
            self.next_s *= 2
            print(tally.projection(), flush=True)


def report(out: Path, tally: Tally, manifest: dict[str, Any] | None) -> int:
    """Print what was done; the exit code."""
    if tally.labels:
        seconds = time.monotonic() - tally.began
        print(
            f"{tally.labels} labels in {seconds:.1f} s, {tally.rate():.1f}/s, "
            f"{tally.bytes_per_label() / 1e3:.0f} kB each; "
            f"the teacher was at work {tally.teacher_s / seconds / tally.workers:.0%} of the time"
        )
        print(tally.projection())
    if manifest is None:
        print(f"{out}: other workers have shards in hand; the last of them completes the store")
        return 0
    print(
        f"{out} is complete: {manifest['labels']} labels in {len(manifest['shards'])} shards, "
        f"{manifest['bytes'] / 1e9:.3f} GB"
    )
    if manifest["unreadable"]:
        print(f"{manifest['unreadable']} images could not be read and have no label: {out / UNREADABLE}")
    return 0


def verify(store: Path) -> int:
    """Check every byte and count of a store; 0 where all is well, 1 where something is wrong."""
    header, _ = read_manifest(store)
    problems, labels, wrong = 0, 0, 0
    with Bar("shards", len(header.shards())) as bar:
        for checked in verify_shards(store):
            labels += checked.labels
            wrong += bool(checked.problems)
            problems += len(checked.problems)
            for problem in checked.problems:
                print(problem, flush=True)
            bar.advance()
    shards, images = len(header.shards()), sum(entry["images"] for entry in header.sets.values())
    if problems:
        print(
            f"{store}: {problems} problems in {wrong} of {shards} shards; delete the .json of a "
            "damaged shard and label again with the settings of the store: it is made anew"
        )
        return 1
    print(f"{store}: all is well, {labels} labels of {images} images in {shards} shards")
    return 0


def inspect(store: Path, cfg: DictConfig) -> int:
    """Write a picture of images and their labels."""
    header, _ = read_manifest(store)
    sets = {name: each for name, each in open_sets(cfg).items() if name in header.sets}
    found = describe_sets(sets)
    if changed := differences({name: header.sets[name] for name in sets}, found, "labeled", "now"):
        raise ValueError(f"{store} has labels of other images than data=... names: {'; '.join(changed)}")
    if not sets:
        raise ValueError(f"{store} has labels of {', '.join(header.sets)}; data=... names none of these sets")
    for name, images in sets.items():
        labeled = LabeledImages(store, name, images)
        chosen = labeled.some(cfg.inspect_images, np.random.default_rng(0))
        if not chosen:
            print(f"{name}: no label yet")
            continue
        path = store / (SHEET if len(sets) == 1 else f"{name}_{SHEET}")
        title = f"{name}: {len(chosen)} of {len(images)} images and their pseudo-labels, {store}"
        draw_sheet(labeled, chosen, path, title, cfg.data.convert_images)
        print(f"{name}: {path}")
    return 0


if __name__ == "__main__":
    main()
