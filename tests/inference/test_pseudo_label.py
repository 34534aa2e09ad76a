"""`python -m depthany.pseudo_label`: killed, raced, out of space; and students that learn from its store."""

import json
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from depthany import load_model
from depthany.config.entry import run_entry
from depthany.data.dataset import TrainingSet
from depthany.data.perturb import Perturb
from depthany.data.pseudo_labels.store import PseudoLabels
from depthany.data.sampler import Draw
from depthany.data.transforms import draw_crop
from depthany.data.unlabeled import FolderImages
from depthany.inference.labeling_counts import LabelingCounts
from depthany.models.model import save_model
from depthany.pseudo_label import run
from depthany.training.stages.student import (
    FeatureAlignmentSettings,
    ImageWeights,
    StudentSettings,
    StudentStage,
)

# Renames of a run: 1 manifest, 2 to 7 three shards with a note each, 8 unreadable.txt, 9 manifest.
DEATHS = [(1, "after"), (2, "half"), (3, "before"), (7, "after"), (9, "half")]


@pytest.fixture(autouse=True)
def _micro(micro: str) -> None:
    """The tiny encoder is known in every test of this file."""


def settings(world, teacher: Path, out: Path, *more: str) -> list[str]:
    """Settings for three shards of two images."""
    return world.labeling(teacher, out, 2, *more)


def label(arguments: list[str]) -> int:
    """Runs the command in this process; returns the exit code."""
    argv, sys.argv = sys.argv, ["pseudo_label", *arguments]
    try:
        return run_entry("pseudo_label", run)
    finally:
        sys.argv = argv


def content(store: Path) -> dict[str, bytes]:
    """Returns all files of a store, by name."""
    paths = [path for path in store.rglob("*") if path.is_file()]
    return {str(path.relative_to(store)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def whole(tiny_world, teacher_run: Path, tmp_path_factory, with_micro) -> Path:
    """A store that was made without interruption; tests must not change it."""
    store = tmp_path_factory.mktemp("whole") / "store"
    with with_micro():
        assert label(settings(tiny_world, teacher_run, store)) == 0
    return store


def kill_at(write: int, when: str) -> str:
    """Code that sends SIGKILL before or after rename number `write`, or after halving the renamed file."""
    return f"""
import os, signal
seen, rename = [], os.replace
def replace(source, target):
    seen.append(target)
    if len(seen) == {write} and "{when}" == "half":
        os.truncate(source, os.path.getsize(source) // 2)
    if len(seen) == {write} and "{when}" in ("half", "before"):
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
    if len(seen) == {write}:
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
"""


@pytest.mark.parametrize("write, when", DEATHS)
def test_killed_labeling_resumes_to_the_same_bytes(
    nursery, tiny_world, teacher_run: Path, whole: Path, tmp_path: Path, write: int, when: str
) -> None:
    command = settings(tiny_world, teacher_run, tmp_path / "store")
    assert nursery.start("pseudo_label", command, kill_at(write, when)).result().code == -signal.SIGKILL
    for path in content(tmp_path / "store"):
        if path.endswith(".h5"):  # a file under its final name is complete
            assert (tmp_path / "store" / path).read_bytes() == (whole / path).read_bytes()
    assert label(command) == 0
    assert content(tmp_path / "store") == content(whole)


def test_two_workers_write_every_shard_once(nursery, own_world, teacher_run: Path, tmp_path: Path) -> None:
    for i in range(10):  # more images than one worker reads ahead
        shutil.copy(own_world.root / "unlabeled/street_0.jpg", own_world.root / f"unlabeled/copy_{i}.jpg")
    small = ("shard_size=1", "batch_size=1")
    assert label([*settings(own_world, teacher_run, tmp_path / "alone"), *small]) == 0
    command, log = [*settings(own_world, teacher_run, tmp_path / "store"), *small], tmp_path / "log"
    meeting = together(tmp_path / "here", log)
    workers = [nursery.start("pseudo_label", command, meeting) for _ in range(2)]
    assert [worker.result(120).code for worker in workers] == [0, 0]
    lines = [line.split() for line in log.read_text().splitlines()]
    assert sorted(int(first) for _, first in lines) == list(range(16))
    assert len({pid for pid, _ in lines}) == 2
    assert content(tmp_path / "store") == content(tmp_path / "alone")


def together(here: Path, log: Path) -> str:
    """Code in which two processes wait for each other: at the start, and when each has its first shard."""
    return f"""
import os, time
from pathlib import Path
from depthany.inference import labeling
here, written, write_shard = Path({str(here)!r}), [], labeling.write_shard
def meet(where):
    (here / where).mkdir(parents=True, exist_ok=True)
    (here / where / str(os.getpid())).touch()
    until = time.monotonic() + 60
    while len(list((here / where).iterdir())) < 2:
        assert time.monotonic() < until, "the other did not come"
        time.sleep(0.01)
def write(store, shard, *rest):
    if not written:
        meet("shard")
    written.append(shard)
    with open({str(log)!r}, "a") as file:
        file.write(f"{{os.getpid()}} {{shard.first}}\\n")
    return write_shard(store, shard, *rest)
labeling.write_shard = write
meet("start")
"""


def test_full_disk_ends_in_one_line_and_resumes(
    nursery, tiny_world, teacher_run: Path, whole: Path, tmp_path: Path
) -> None:
    smallest = min(path.stat().st_size for path in whole.glob("shards/*.h5"))
    command = settings(tiny_world, teacher_run, tmp_path / "store")
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({smallest - 1}, {smallest - 1}))"
    full = nursery.start("pseudo_label", command, limit).result()  # the manifest fits
    assert full.code == 2
    assert "cannot write" in full.err and ".h5: File too large" in full.err and "Traceback" not in full.err
    assert not list((tmp_path / "store").rglob("*.h5")) and not list((tmp_path / "store").rglob("*.partial"))
    assert label(command) == 0
    assert content(tmp_path / "store") == content(whole)


def test_damaged_shard_is_written_anew(
    tiny_world, teacher_run: Path, whole: Path, tmp_path: Path, capsys
) -> None:
    shutil.copytree(whole, tmp_path / "store")
    damaged = tmp_path / "store/shards/mine-0000000002.h5"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert label([f"verify={tmp_path / 'store'}"]) == 1
    assert "delete the .json" in capsys.readouterr().out
    damaged.with_suffix(".json").unlink()
    assert label(settings(tiny_world, teacher_run, tmp_path / "store")) == 0
    assert label([f"verify={tmp_path / 'store'}"]) == 0
    assert content(tmp_path / "store") == content(whole)


def test_unreadable_image_ends_the_run_or_is_skipped(
    own_world, teacher_run: Path, tmp_path: Path, capsys, start
) -> None:
    (own_world.root / "unlabeled/street_3.jpg").write_bytes(b"no image")
    command = settings(own_world, teacher_run, tmp_path / "store")
    assert label(command) == 2
    assert "street_3.jpg: not an image" in capsys.readouterr().err
    assert label([*settings(own_world, teacher_run, tmp_path / "skip"), "data.unreadable=skip"]) == 0
    listed = (tmp_path / "skip/unreadable.txt").read_text().split("\t")
    assert listed[:3] == ["mine", "3", "damaged or missing"] and "street_3.jpg" in listed[3]
    assert label([f"verify={tmp_path / 'skip'}"]) == 0

    Image.new("RGB", (30, 40)).save(own_world.root / "unlabeled/street_3.jpg")  # repaired since
    more = [f"stage.teacher={teacher_run}", f"pseudo_labels={tmp_path / 'skip'}", "steps=3"]
    run_dir = tmp_path / "run"
    refused = start(own_world.settings("student", run_dir, *more))
    assert refused.code == 2 and "street_3.jpg: has no pseudo-label" in refused.err
    done = start(own_world.settings("student", run_dir, *more, "data.unreadable=skip", "overwrite=true"))
    assert done.code == 0, done.err
    assert "without pseudo-label" in (run_dir / "unreadable.txt").read_text()


def test_too_many_unreadable_images_end_the_run(
    own_world, teacher_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own_world.root / "unlabeled/street_3.jpg").write_bytes(b"no image")
    skip = ("data.unreadable=skip", "data.max_unreadable_share=0.004")
    assert label([*settings(own_world, teacher_run, tmp_path / "store"), *skip]) == 2
    error = capsys.readouterr().err
    assert "1 of 3 unlabeled images were left out, more than data.max_unreadable_share=0.004" in error
    assert "street_3.jpg: not an image" in error


def test_inspect_draws_the_labels(tiny_world, teacher_run: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "store")
    root = f"data.unlabeled.mine.root={tiny_world.root / 'unlabeled'}"
    assert label([f"inspect={tmp_path / 'store'}", "data=folder", root, "inspect_images=4"]) == 0
    with Image.open(tmp_path / "store/contact.jpg") as sheet:
        assert np.asarray(sheet)[60:, :].std() > 30


def student(world, run_dir: Path, teacher: Path, store: Path, *more: str) -> list[str]:
    return world.settings("student", run_dir, f"stage.teacher={teacher}", f"pseudo_labels={store}", *more)


def test_store_with_other_settings_is_refused(
    tiny_world, own_world, teacher_run: Path, whole: Path, tmp_path: Path, start
) -> None:
    model = load_model(teacher_run)
    with torch.no_grad():
        model.head.conv3.bias.add_(1e-3)
    save_model(model, tmp_path / "other")
    other = start(student(tiny_world, tmp_path / "a", tmp_path / "other", whole))
    assert other.code == 2 and "teacher.weights_sha256: the store has" in other.err
    larger = start(student(tiny_world, tmp_path / "b", teacher_run, whole, "crop_size=42"))
    assert larger.code == 2 and "preprocessing.input_size: the store has 28, the run 42" in larger.err
    (own_world.root / "unlabeled/street_5.jpg").unlink()
    fewer = start(student(own_world, tmp_path / "c", teacher_run, whole))
    assert fewer.code == 2 and "sets.mine.images: the store has 6, the run 5" in fewer.err
    teacher = start(tiny_world.settings("teacher", tmp_path / "d", f"pseudo_labels={whole}"))
    assert teacher.code == 2 and "stage=teacher learns from no teacher" in teacher.err


def test_incomplete_store_is_refused(nursery, tiny_world, teacher_run: Path, tmp_path: Path, start) -> None:
    command = settings(tiny_world, teacher_run, tmp_path / "store")
    assert nursery.start("pseudo_label", command, kill_at(4, "after")).result().code == -signal.SIGKILL
    refused = start(student(tiny_world, tmp_path / "run", teacher_run, tmp_path / "store"))
    assert refused.code == 2 and "is not complete: finish it first" in refused.err


def test_student_of_a_store_resumes_bit_for_bit(
    tiny_world, teacher_run: Path, whole: Path, tmp_path: Path, start, start_elsewhere, signal_at
) -> None:
    straight = start(student(tiny_world, tmp_path / "straight", teacher_run, whole))
    assert straight.code == 0, straight.err
    command = student(tiny_world, tmp_path / "killed", teacher_run, whole, "workers=1")
    assert start_elsewhere(command, signal_at(signal.SIGKILL, step=4)).code == -signal.SIGKILL
    resumed = start(command)
    assert "continuing at step 3 of 6" in resumed.out, resumed.err
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("straight", "killed")]
    assert models[0] == models[1]
    scores = json.loads((tmp_path / "straight/results.json").read_text())["scores"]
    assert set(scores) == {"student", "teacher"}  # the teacher is scored, too


def test_half_resolution_labels_are_means_of_four_pixels(
    tiny_world, teacher_run: Path, whole: Path, tmp_path: Path, start, capsys
) -> None:
    command = [*settings(tiny_world, teacher_run, tmp_path / "half"), "resolution=half"]
    assert label(command) == 0
    assert label([f"verify={tmp_path / 'half'}"]) == 0
    full, half = (PseudoLabels(store, ["mine"]) for store in (whole, tmp_path / "half"))
    for index in range(6):
        large, small = (store.read(0, index) for store in (full, half))
        assert large is not None and small is not None
        height, width = small.disparity.shape
        assert large.disparity.shape == (2 * height, 2 * width)
        means = large.disparity.reshape(height, 2, width, 2).mean((1, 3))
        assert np.abs(means - small.disparity).max() <= 2e-5 * np.ptp(large.disparity) + 1e-6
    learned = start(student(tiny_world, tmp_path / "run", teacher_run, tmp_path / "half"))
    assert learned.code == 0, learned.err
    capsys.readouterr()
    assert label(settings(tiny_world, teacher_run, tmp_path / "half")) == 2
    assert "resolution: began with half, now full" in capsys.readouterr().err


SPAWN = """
import multiprocessing
multiprocessing.set_start_method("spawn")
"""


@pytest.mark.slow
def test_spawned_loader_processes_read_the_same_labels(
    nursery, tiny_world, teacher_run: Path, whole: Path, tmp_path: Path, start
) -> None:
    more = ("data.read_timeout=100", "workers=1")  # spawned processes share no memory with this one
    command = student(tiny_world, tmp_path / "spawned", teacher_run, whole, *more)
    spawned = nursery.start("train", command, SPAWN).result()
    assert spawned.code == 0, spawned.err
    assert start(student(tiny_world, tmp_path / "here", teacher_run, whole)).code == 0
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("spawned", "here")]
    assert models[0] == models[1]


def stage_of(teacher: Any) -> StudentStage:
    still = Perturb(**dict.fromkeys(("jitter_p", "grayscale_p", "blur_p", "cutmix_p"), 0.0), **STILL)
    settings = StudentSettings(
        name="student",
        teacher="unused",
        terms={"affine_invariant": 1.0},
        ratio=[0, 1],
        weights=ImageWeights(0.0, 1.0, 0.0),
        trim=0.1,
        feature_alignment=FeatureAlignmentSettings(0.15, "kept", "clean"),
    )
    options = {"normalisation": "median_mad", "reduction": "batch"}
    return StudentStage(settings, teacher, None, 24, still, options)


STILL: dict[str, Any] = {
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "hue": 0.0,
    "blur_radius": [0.1, 2.0],
    "cutmix_area": [0.02, 0.4],
    "cutmix_aspect": [0.3, 3.3],
}


def unmirrored(index: int, height: int, width: int) -> Draw:
    seeds = (seed for seed in range(99) if not draw_crop(height, width, (28, 28), seed).flip)
    return Draw(False, index, next(seeds), place=index, places=3)


@pytest.mark.parametrize("side", [28, 61])
def test_stored_labels_equal_the_teacher_up_to_quantisation(
    tiny_world, teacher_run: Path, tmp_path: Path, side: int
) -> None:
    (tmp_path / "unlabeled").mkdir()
    for i in range(3):  # square, so that a view shows the whole image
        pixels = np.random.default_rng(i).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"unlabeled/{i}.png")
    world = replace(tiny_world, root=tmp_path)
    assert label(settings(world, teacher_run, tmp_path / "store")) == 0
    images, labels = FolderImages(str(tmp_path / "unlabeled")), PseudoLabels(tmp_path / "store", ["mine"])
    batch = TrainingSet([], [images], 28, pseudo_labels=labels)[[unmirrored(i, side, side) for i in range(3)]]
    teacher, model = load_model(teacher_run), load_model(teacher_run)
    with torch.no_grad():
        for parameter in model.parameters():  # a student with errors
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    stored, online = stage_of(None), stage_of(teacher)
    expected = online._label(batch)
    range_ = expected.flatten(1).amax(1) - expected.flatten(1).amin(1)
    error = (stored._label(batch) - expected).abs().flatten(1).amax(1) / range_
    # Half a step of 16 bits, and float32 rounding, about 1e-5 of the range.
    assert float(error.max()) < 2 / 65535
    losses = [float(stage(model, batch, torch.Generator()).loss.detach()) for stage in (stored, online)]
    assert losses[1] > 0.01
    assert losses[0] == pytest.approx(losses[1], rel=2e-4)


def test_input_size_that_no_crop_can_have_is_refused(
    tiny_world, teacher_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], micro: str
) -> None:
    assert label(settings(tiny_world, teacher_run, tmp_path / "store", "input_size=30")) == 2
    assert "input_size=30 is not a multiple of 14, as the crop_size of students" in capsys.readouterr().err
    assert not (tmp_path / "store" / "manifest.json").exists()


def test_projection_is_of_the_job() -> None:
    counts = LabelingCounts(labels=100, encoded=100, encoded_bytes=2_000_000, began=time.monotonic() - 10)
    assert counts.projection(1000) == "1,000 images: about 0.02 GB and 2 minutes at this rate"
    assert counts.projection(720_000) == "720,000 images: about 14.4 GB and 20 hours at this rate"
