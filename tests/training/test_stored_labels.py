"""`pseudo_labels=once`: a student's run makes its labels before the first step, and reads them."""

import os
import shutil
import signal
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from depthany import load_model
from depthany.data.pseudo_labels.store import read_manifest
from depthany.inference import labeling
from depthany.models.model import save_model
from depthany.training import run_dir as runs
from depthany.training import stored_labels

KILL_AFTER_A_SHARD = """
import os, signal
from depthany.inference import labeling
write_shard = labeling.write_shard
def write(*arguments):
    write_shard(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
labeling.write_shard = write
"""


def student(world, run_dir: Path, teacher: Path, labels: object, *more: str) -> list[str]:
    short = ("steps=3", "save_every=1", "eval_every=0", "data.val.mine.root=null")
    return world.settings(
        "student", run_dir, f"stage.teacher={teacher}", f"pseudo_labels={labels}", *short, *more
    )


def content(folder: Path) -> dict[str, bytes]:
    """Returns all files of a store, by name."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights(run_dir: Path) -> bytes:
    return (run_dir / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def once(tiny_world, teacher_run: Path, tmp_path_factory, start) -> Path:
    """A finished run of three steps that made its labels; tests must not change it."""
    run_dir = tmp_path_factory.mktemp("once") / "run"
    ended = start(student(tiny_world, run_dir, teacher_run, "once"))
    assert ended.code == 0, ended.err
    assert "micro labels 6 images once at input_size=28, cpu in float32: about 7" in ended.out
    assert f"in {run_dir / 'pseudo_labels'}, " in ended.out and " free\n" in ended.out
    assert "6 labels, " in ended.out and ", 6 of them made now in " in ended.out
    return run_dir


def test_run_learns_from_the_labels_it_made(
    tiny_world, teacher_run: Path, once: Path, tmp_path: Path, start
) -> None:
    of_store = start(student(tiny_world, tmp_path / "store", teacher_run, once / "pseudo_labels"))
    assert of_store.code == 0, of_store.err
    assert weights(tmp_path / "store") == weights(once)


def test_run_killed_while_labeling_reaches_same_bits(
    tiny_world, teacher_run: Path, once: Path, tmp_path: Path, start, start_elsewhere
) -> None:
    command = student(tiny_world, tmp_path / "run", teacher_run, "once")
    assert start_elsewhere(command, KILL_AFTER_A_SHARD).code == -signal.SIGKILL
    assert not read_manifest(tmp_path / "run/pseudo_labels")[1]["complete"]
    resumed = start(command)
    assert resumed.code == 0, resumed.err
    assert "micro labels 2 images once" in resumed.out  # the second shard
    assert content(tmp_path / "run/pseudo_labels") == content(once / "pseudo_labels")
    assert weights(tmp_path / "run") == weights(once)


def test_slurm_signal_ends_labeling(
    tiny_world, teacher_run: Path, tmp_path: Path, start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_and_signal(*arguments: Any) -> None:
        write_shard(*arguments)
        os.kill(os.getpid(), signal.SIGUSR1)

    write_shard = labeling.write_shard
    monkeypatch.setattr(labeling, "write_shard", write_and_signal)
    ended = start(student(tiny_world, tmp_path / "run", teacher_run, "once"))
    assert (ended.code, ended.err) == (143, "terminated; files saved before are complete\n")
    assert list((tmp_path / "run/pseudo_labels/shards").glob("*.h5"))
    assert not read_manifest(tmp_path / "run/pseudo_labels")[1]["complete"]


def test_continued_run_reuses_its_labels(
    tiny_world, teacher_run: Path, once: Path, tmp_path: Path, start
) -> None:
    shutil.copytree(once, tmp_path / "run")
    (tmp_path / "run/model.safetensors").unlink()
    max((tmp_path / "run/checkpoints").glob("step_*.pt")).unlink()
    made = content(once / "pseudo_labels")
    resumed = start(student(tiny_world, tmp_path / "run", teacher_run, "once"))
    assert resumed.code == 0, resumed.err
    assert "continuing at step 2 of 3" in resumed.out
    assert "6 labels that were made before" in resumed.out
    assert content(tmp_path / "run/pseudo_labels") == made
    assert weights(tmp_path / "run") == weights(once)


def test_deleted_shard_is_labeled_again(
    tiny_world, teacher_run: Path, once: Path, tmp_path: Path, start
) -> None:
    shutil.copytree(once, tmp_path / "run")
    (tmp_path / "run/model.safetensors").unlink()
    for checkpoint in (tmp_path / "run/checkpoints").glob("step_*.pt"):
        checkpoint.unlink()
    first, second = sorted((tmp_path / "run/pseudo_labels/shards").glob("*.h5"))
    first.write_bytes(first.read_bytes()[:100])
    command = student(tiny_world, tmp_path / "run", teacher_run, "once")
    damaged = start(command)
    assert damaged.code == 2
    assert f"{first}: damaged" in damaged.err
    assert "delete this file, and the command that made the labels makes it again\n" in damaged.err
    first.unlink()
    second.with_suffix(".json").unlink()
    resumed = start(command)
    assert resumed.code == 0, resumed.err
    assert "micro labels 6 images once" in resumed.out
    assert content(tmp_path / "run/pseudo_labels") == content(once / "pseudo_labels")
    assert weights(tmp_path / "run") == weights(once)


def test_labels_of_another_teacher_are_refused(
    tiny_world, teacher_run: Path, tmp_path: Path, start, micro: str
) -> None:
    teacher, run_dir = tmp_path / "teacher", tmp_path / "run"
    shutil.copytree(teacher_run, teacher)
    assert start(student(tiny_world, run_dir, teacher, "once")).code == 0
    before = content(run_dir / "pseudo_labels")
    model = load_model(teacher)
    with torch.no_grad():
        model.head.conv3.bias.add_(1e-3)
    save_model(model, teacher)
    (run_dir / "model.safetensors").unlink()
    noted = yaml.safe_load((run_dir / "settings.yaml").read_text())
    del noted["weights_found"]  # a run of an older version knows its teacher by the labels alone
    (run_dir / "settings.yaml").write_text(yaml.safe_dump(noted, sort_keys=False))
    refused = start(student(tiny_world, run_dir, teacher, "once", "steps=4"))
    assert refused.code == 2 and refused.err.count("\n") == 1
    assert "teacher.weights_sha256: the store has" in refused.err
    assert "overwrite=true makes the labels again" in refused.err
    anew = start(student(tiny_world, run_dir, teacher, "once", "overwrite=true"))
    assert anew.code == 0, anew.err
    assert content(run_dir / "pseudo_labels").keys() == before.keys()
    assert content(run_dir / "pseudo_labels") != before


def test_full_disk_is_noticed_before_labeling(
    tiny_world, teacher_run: Path, tmp_path: Path, start, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(stored_labels.shutil, "disk_usage", lambda _: usage(10_000, 9_000, 1_000))
    ended = start(student(tiny_world, tmp_path / "run", teacher_run, "once"))
    assert ended.code == 2 and ended.err.count("\n") == 1
    assert "pseudo_labels=once needs about 7" in ended.err and "but 1 kB are free" in ended.err
    assert not list((tmp_path / "run").rglob("*.h5"))


def test_unknown_kind_of_labels_lists_the_choices(
    tiny_world, teacher_run: Path, tmp_path: Path, start
) -> None:
    ended = start(student(tiny_world, tmp_path / "run", teacher_run, "onse"))
    assert ended.code == 2 and "pseudo_labels=onse: no such folder" in ended.err
    assert "choose online, once, or the folder of a store" in ended.err


def test_teacher_run_needs_no_labels(tiny_world, tmp_path: Path, start) -> None:
    more = ("pseudo_labels=once", "steps=1", "eval_every=0", "data.val.mine.root=null")
    assert start(tiny_world.settings("teacher", tmp_path / "run", *more)).code == 0
    assert not (tmp_path / "run/pseudo_labels").exists()


@pytest.mark.parametrize("labels, kept", [("once", False), ("online", True)])
def test_overwrite_deletes_only_labels_of_the_run(tmp_path: Path, labels: str, kept: bool) -> None:
    def begin() -> None:
        (tmp_path / "pseudo_labels").mkdir(exist_ok=True)
        text = f"run_dir: x\nstage: {{name: student, teacher: y}}\npseudo_labels: {labels}\n"
        (tmp_path / runs.SETTINGS_FILE).write_text(text)

    begin()
    runs.clear(tmp_path, in_use=tmp_path / "pseudo_labels")
    assert (tmp_path / "pseudo_labels").exists()
    begin()
    runs.clear(tmp_path)
    assert (tmp_path / "pseudo_labels").exists() == kept


@pytest.mark.slow
def test_processes_share_the_labels_of_a_run(
    tiny_world, teacher_run: Path, once: Path, tmp_path: Path, torchrun
) -> None:
    ended = torchrun(student(tiny_world, tmp_path / "run", teacher_run, "once"))
    assert ended.code == 0, ended.err
    assert ended.out.count("labels 6 images once") == 1 and "2 processes" in ended.out
    assert content(tmp_path / "run/pseudo_labels") == content(once / "pseudo_labels")
