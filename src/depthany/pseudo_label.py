"""Labels unlabeled images once for any number of students: `python -m depthany.pseudo_label teacher=...`."""

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
    StoreHeader,
    begin_store,
    describe_sets,
    differences,
    finish_store,
    read_manifest,
)
from depthany.data.pseudo_labels.verify import verify_shards
from depthany.display.progress import Bar, bar_of_all
from depthany.inference.claims import Claims
from depthany.inference.labeling import RESOLUTIONS, Labeler, Reading
from depthany.inference.labeling_counts import LabelingCounts
from depthany.inference.predictor import Predictor
from depthany.models.fast import prepare_for_inference
from depthany.models.files.weights import weights_sha256
from depthany.models.model import DenseModel
from depthany.system.device import choose_amp, choose_device, keep_freed_memory
from depthany.system.distributed import Processes, launched, process_group
from depthany.system.files import require_writable
from depthany.training import build

SHEET = "contact.jpg"
_PROJECT_AFTER_S = 20.0  # until the first projection; the next ones follow after twice the time


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
    with process_group(processes, device):
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
    """Labels every image that has no label yet and that no other worker labels; returns the exit code."""
    out = Path(cfg.out)
    if processes.is_main:
        require_writable(out)
    dtype = choose_amp(cfg.precision, device) or torch.float32
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    keep_freed_memory()

    teacher = load_model(cfg.teacher, device)
    teacher.quantity.require("disparity", f"teacher={cfg.teacher}", "pass a relative model")
    sets = open_sets(cfg)
    size = teacher.input_size if cfg.input_size is None else cfg.input_size
    claims = begin(out, build_header(cfg, teacher, size, dtype, sets), processes)
    images = sum(len(each) for each in sets.values())
    wanted = sum(shard.last - shard.first for shard in claims.open)
    if processes.is_main:
        print(describe(teacher, size, images, images - wanted, device, dtype, processes), flush=True)

    with bar_of_all(processes, "images", wanted) as advance:
        reading = Reading(
            cfg.data.convert_images, cfg.data.min_side, cfg.data.unreadable, cfg.data.max_unreadable_share
        )
        labeler = Labeler(
            Predictor(prepare_for_inference(teacher, dtype), size, label="the teacher"),
            sets,
            reading,
            cfg.resolution == "half",
            cfg.batch_size,
            cfg.workers,
            LabelingProgress(advance, processes.is_main),
        )
        counts = labeler.run(out, claims)
        processes.wait_however_long("labels")  # for the last shards of other processes
        advance(0)
    return finish(out, counts, processes)


def begin(out: Path, header: StoreHeader, processes: Processes) -> Claims:
    """Begins the store, or checks that it is the same one; returns the shards that are not done."""
    if processes.is_main:
        with FileLock(out / ".lock"):  # or workers that start together would write the same partial file
            begin_store(out, header)
    processes.wait()
    begin_store(out, header)
    claims = Claims(out, header)
    processes.wait()  # until all have counted the open shards, and none has written one
    return claims


def finish(out: Path, counts: LabelingCounts, processes: Processes) -> int:
    """Completes the store and prints what all processes have done; returns the exit code."""
    of_all = processes.gather(counts.summable())
    if not processes.is_main:
        return 0
    with FileLock(out / ".lock"):
        manifest = finish_store(out)
    return report(out, counts.total(of_all), manifest)


def open_sets(cfg: DictConfig) -> dict[str, Any]:
    """Returns the unlabeled sets that have a root, by name."""
    sets = build.build_sets(cfg.data.unlabeled, "data.unlabeled")
    if not sets:
        keys = " ".join(f"data.unlabeled.{name}.root=..." for name in cfg.data.unlabeled)
        raise ValueError(f"no unlabeled set has a root: set one of {keys or 'another data=...'}")
    return sets


def build_header(
    cfg: DictConfig, teacher: DenseModel, size: int, dtype: torch.dtype, sets: dict[str, Any]
) -> StoreHeader:
    """Returns everything that the labels depend on."""
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
    return StoreHeader(about, preprocessing, cfg.shard_size, describe_sets(sets))


def describe(
    teacher: DenseModel,
    size: int,
    images: int,
    done: int,
    device: torch.device,
    dtype: torch.dtype,
    processes: Processes,
) -> str:
    """Returns one line about the work that begins."""
    number_format = str(dtype).removeprefix("torch.")
    before = f" ({done} of them are in shards that are done)" if done else ""
    by = f", {processes.size} processes" if processes.size > 1 else ""
    return (
        f"{teacher.encoder.label} labels {images} images{before} at input_size={size}, {device.type} in "
        f"{number_format}{by}"
    )


class LabelingProgress:
    """Moves the bar; prints now and then how long the paper's 62 million images would take.

    Args:
        advance: moves the bar by a number of images.
        projects: whether this process prints; the projection is of its own rate.
    """

    def __init__(self, advance: Callable[[int], object], projects: bool) -> None:
        self.advance, self.next_s = advance, _PROJECT_AFTER_S if projects else math.inf

    def __call__(self, images: int, counts: LabelingCounts) -> None:
        """Notes that `images` more images are done."""
        self.advance(images)
        if time.monotonic() - counts.began > self.next_s:
            self.next_s *= 2
            print(counts.projection(), flush=True)


def report(out: Path, counts: LabelingCounts, manifest: dict[str, Any] | None) -> int:
    """Prints what was done; returns the exit code.

    Args:
        manifest: of the complete store; None if other workers still label.
    """
    if counts.labels:
        seconds = time.monotonic() - counts.began
        print(
            f"{counts.labels} labels in {seconds:.1f} s, {counts.rate():.1f}/s, "
            f"{counts.bytes_per_label() / 1e3:.0f} kB each; "
            f"the teacher was at work {counts.teacher_s / seconds / counts.workers:.0%} of the time"
        )
        print(counts.projection())
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
    """Checks every byte and count of a store; returns 0 if all is well, 1 if something is wrong."""
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
            "damaged shard and label again with the settings of the store: it is written anew"
        )
        return 1
    print(f"{store}: all is well, {labels} labels of {images} images in {shards} shards")
    return 0


def inspect(store: Path, cfg: DictConfig) -> int:
    """Writes a picture of images and their labels; returns the exit code."""
    header, _ = read_manifest(store)
    sets = {name: images for name, images in open_sets(cfg).items() if name in header.sets}
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
