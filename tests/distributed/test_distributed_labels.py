"""Labeling under torchrun writes the store of one process, byte for byte."""

import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from depthany.config.entry import run_entry
from depthany.pseudo_label import run


def settings(world, teacher: Path, out: Path, *more: str) -> list[str]:
    """Settings for shards of one image."""
    return world.labeling(teacher, out, 1, "data.unreadable=skip", *more)


def alone(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> int:
    """Runs the command in this process; returns the exit code."""
    monkeypatch.setattr(sys, "argv", ["pseudo_label", *arguments])
    return run_entry("pseudo_label", run)


def content(store: Path) -> dict[str, bytes]:
    """Returns all files of a store, by name."""
    paths = [path for path in store.rglob("*") if path.is_file()]
    return {str(path.relative_to(store)): path.read_bytes() for path in paths}


@pytest.fixture
def many(own_world):
    """16 images; street_3 is damaged."""
    for i in range(10):
        shutil.copy(own_world.root / "unlabeled/street_0.jpg", own_world.root / f"unlabeled/copy_{i}.jpg")
    (own_world.root / "unlabeled/street_3.jpg").write_bytes(b"no image")
    return own_world


def note_shards(folder: Path) -> str:
    """Code in which a process notes its shards; with its first shard it waits until the other one has one."""
    return f"""
import os, time
from pathlib import Path
from depthany.inference import labeling
folder, rank, write_shard = Path({str(folder)!r}), os.environ["RANK"], labeling.write_shard
def write(store, shard, *rest):
    with open(folder / f"shards_of_{{rank}}", "a") as file:
        file.write(f"{{shard.first}}\\n")
    until = time.monotonic() + 60
    while len(list(folder.glob("shards_of_*"))) < 2:
        assert time.monotonic() < until, "the other did not come"
        time.sleep(0.01)
    return write_shard(store, shard, *rest)
labeling.write_shard = write
"""


@pytest.mark.slow
def test_two_ranks_make_the_store_of_one(
    many, micro: str, teacher_run: Path, torchrun: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert alone(monkeypatch, settings(many, teacher_run, tmp_path / "one")) == 0
    arguments = settings(many, teacher_run, tmp_path / "two")
    both = torchrun(arguments, before=note_shards(tmp_path), entry="pseudo_label")
    assert both.code == 0, both.err
    assert content(tmp_path / "two") == content(tmp_path / "one")
    shards = [(tmp_path / f"shards_of_{rank}").read_text().split() for rank in (0, 1)]
    assert sorted(map(int, shards[0] + shards[1])) == list(range(16))
    assert both.out.count("16 images at") == both.out.count("two is complete: 15 labels") == 1
    assert len(re.findall(r"^15 labels in .* each; the teacher was at work", both.out, re.M)) == 1


@pytest.mark.slow
def test_fault_of_one_rank_ends_both(
    many, micro: str, teacher_run: Path, torchrun: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments = settings(many, teacher_run, tmp_path / "store", "data.unreadable=error")
    end = f"""
import atexit, time
end = {str(tmp_path)!r} + "/end_of_" + os.environ["RANK"]
atexit.register(lambda: pathlib.Path(end).write_text(str(time.time())))
"""
    failed = torchrun(arguments, before=end, entry="pseudo_label")
    assert failed.code != 0
    assert time.time() - min(float(path.read_text()) for path in tmp_path.glob("end_of_*")) < 15
    assert failed.err.count("error: ") == failed.err.count("street_3.jpg: not an image") == 1, failed.err
    assert "is complete" not in failed.out
    Image.new("RGB", (30, 40)).save(many.root / "unlabeled/street_3.jpg")
    assert alone(monkeypatch, arguments) == 0
    assert alone(monkeypatch, settings(many, teacher_run, tmp_path / "one", "data.unreadable=error")) == 0
    assert content(tmp_path / "store") == content(tmp_path / "one")
