"""A read that hangs, a loader process that is stopped or killed: one line, nothing lost, nobody left over."""

import json
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest

from depthany.data.dataset import FileKind
from depthany.data.loading.watch import CurrentReads

# 24 micro-batches, two to a step. A loader process reads four of them ahead.
SETTINGS = ("accumulate=2", "steps=12", "save_every=2", "eval_every=0", "data.read_timeout=1.5")
# For `before`: something happens as the optimizer begins its third step, when a checkpoint has been written.
AT_STEP_3 = """
import os, signal, time
from pathlib import Path
from torch.optim.optimizer import register_optimizer_step_pre_hook
seen = []
def hook(*_):
    seen.append(1)
    if len(seen) == 3:
        happen()
register_optimizer_step_pre_hook(hook)
def loaders():
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
"""
STOP = "def happen():\n    for pid in loaders(): os.kill(pid, signal.SIGSTOP)\n"


def arguments(world, stage: str, run_dir: Path, teacher_run: Path, *more: str) -> list[str]:
    student = (f"stage.teacher={teacher_run}", "batch_size=12") if stage == "student" else ()
    return world.settings(stage, run_dir, *SETTINGS, *student, *more)


def fifo(path: Path) -> str:
    """Code: `path` becomes a FIFO that nobody writes to, so that opening it has no end."""
    return f"""
def happen():
    os.rename({str(path)!r}, {str(path) + ".real"!r})
    os.mkfifo({str(path)!r})
"""


def one_line(ended) -> str:
    """What a fault ends with."""
    assert ended.code == 2, ended.err
    lines = ended.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), ended.err
    assert "the same command continues from the last checkpoint" in lines[0]
    return lines[0]


def assert_same(run_dir: Path, whole: Path) -> None:
    """Same weights, same curves without a step missing or double."""
    assert (run_dir / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert logged(run_dir) == logged(whole)


def logged(run_dir: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("speed/", "memory"))} for line in lines]


@pytest.fixture(scope="module")
def whole(start, tiny_world, teacher_run: Path, tmp_path_factory) -> dict[str, Path]:
    """A run of each stage without a fault."""
    runs = {stage: tmp_path_factory.mktemp("whole") / stage for stage in ("teacher", "student")}
    for stage, run_dir in runs.items():
        ended = start(arguments(tiny_world, stage, run_dir, teacher_run))
        assert ended.code == 0, ended.err
    return runs


@pytest.mark.parametrize(
    "stage, name, workers",
    [
        ("student", "unlabeled/street_2.jpg", 1),
        ("teacher", "labeled/images/room_1.png", 2),  # the other one waits behind it
        ("teacher", "labeled/depth/room_2.png", 1),
    ],
)
def test_hanging_read_is_named_and_run_resumes_bitwise(
    nursery, start, own_world, teacher_run: Path, whole, tmp_path: Path, stage: str, name: str, workers: int
) -> None:
    path = own_world.root / name
    command = arguments(own_world, stage, tmp_path / "run", teacher_run, f"workers={workers}")
    child = nursery.start("train", command, AT_STEP_3 + fifo(path))
    try:
        assert child.ended_within(60)
        assert child.group() == []
    finally:
        child.clean_up()
    line = one_line(child.result())
    assert re.search(rf"no batch for 2 s .*: loader process \d+ has been at {path} for", line), line
    os.replace(f"{path}.real", path)
    resumed = start([*command, "workers=0"])
    assert "continuing at step" in resumed.out, resumed.err
    assert_same(tmp_path / "run", whole[stage])


def test_a_stopped_loader_process_ends_the_run(
    nursery, start, tiny_world, teacher_run: Path, whole, tmp_path: Path
) -> None:
    command = arguments(tiny_world, "teacher", tmp_path / "run", teacher_run, "workers=2")
    child = nursery.start("train", command, AT_STEP_3 + STOP)
    try:
        assert child.ended_within(60)
        assert child.group() == []
    finally:
        child.clean_up()
    line = one_line(child.result())
    assert re.search(r"no batch for 2 s .*(is one of them \(\d+, \d+\) stopped\?|has been at)", line), line
    assert start([*command, "workers=0"]).code == 0
    assert_same(tmp_path / "run", whole["teacher"])


def test_run_ends_with_unkillable_loader(nursery, own_world, teacher_run: Path, tmp_path: Path) -> None:
    # As one that waits within the kernel, for a network disk that is gone.
    spared = "from multiprocessing.process import BaseProcess\nBaseProcess.kill = lambda self: None\n"
    command = arguments(own_world, "teacher", tmp_path / "run", teacher_run, "workers=1")
    path = own_world.root / "labeled/images/room_1.png"
    child = nursery.start("train", command, AT_STEP_3 + fifo(path) + spared)
    try:
        assert child.ended_within(60)
    finally:
        child.clean_up()
    assert f"has been at {path}" in one_line(child.result())


def test_stopped_run_outlives_the_read_timeout(
    nursery, tiny_world, teacher_run: Path, whole, tmp_path: Path
) -> None:
    stop = "def happen():\n    os.kill(0, signal.SIGSTOP)\n"  # itself and its loaders, as Ctrl-Z does
    command = arguments(tiny_world, "teacher", tmp_path / "run", teacher_run, "workers=1")
    child = nursery.start("train", command, AT_STEP_3 + stop)
    try:
        until = time.monotonic() + 60
        while "T" not in Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0]:
            assert time.monotonic() < until, "it did not stop"
            time.sleep(0.02)
        time.sleep(2.5)
        os.killpg(child.pid, signal.SIGCONT)
        assert child.ended_within(60)
    finally:
        child.clean_up()
    assert child.result().code == 0
    assert_same(tmp_path / "run", whole["teacher"])


def test_hanging_loaders_end_with_killed_run(nursery, own_world, teacher_run: Path, tmp_path: Path) -> None:
    path = own_world.root / "labeled/images/room_1.png"
    path.unlink()
    os.mkfifo(path)
    more = ("workers=2", "data.read_timeout=0")
    command = arguments(own_world, "teacher", tmp_path / "run", teacher_run, *more)
    child = nursery.start("train", command)
    try:
        until = time.monotonic() + 60
        while len(child.group()) < 3:
            assert time.monotonic() < until, "no loader process"
            time.sleep(0.02)
        time.sleep(0.3)
        child.kill()
        assert child.result(30).code == -signal.SIGKILL
        until = time.monotonic() + 10
        while child.group() and time.monotonic() < until:
            time.sleep(0.02)
        assert child.group() == []  # or they would hold the lock of the run
    finally:
        child.clean_up()


def test_oldest_read_is_reported() -> None:
    notes = CurrentReads(3)
    assert notes.oldest() is None
    for worker, what, index in (
        (2, FileKind.UNLABELED, 2**40),
        (0, FileKind.IMAGE, 1),
        (1, FileKind.LABELS, 5),
    ):
        notes.write(worker, what, index)
    worker, what, index, seconds = notes.oldest() or (0, FileKind.NOTHING, 0, 0.0)
    assert (worker, what, index) == (2, FileKind.UNLABELED, 2**40) and 0 <= seconds < 5
    notes.write(2, FileKind.NOTHING, 0)
    assert (notes.oldest() or ())[:3] == (0, FileKind.IMAGE, 1)


def kill_loaders(nursery, command: list[str], kills: int, longest_s: float, dice: random.Random) -> list[str]:
    """Run again and again, each time with SIGKILL to a loader process at a random moment after it began;
    gives the lines that the runs ended with.
    """
    lines = list[str]()
    while len(lines) < kills:
        child = nursery.start("train", command)
        try:
            while len(child.group()) < 2 and not child.ended_within(0):
                time.sleep(0.005)
            time.sleep(dice.uniform(0, longest_s))
            loaders = [pid for pid in child.group() if pid != child.pid]
            if child.ended_within(0) or not loaders:
                assert child.result(60).code == 0, "it had come to its end"
                return lines
            os.kill(dice.choice(loaders), signal.SIGKILL)
            began = time.monotonic()
            assert child.ended_within(60)
            assert child.group() == []
        finally:
            child.clean_up()
        ended = child.result()
        if ended.code == 0:  # all had been read
            return lines
        assert time.monotonic() - began < 20
        lines.append(one_line(ended))
        assert "a loader process was killed by SIGKILL, perhaps because memory ran out" in lines[-1]
    return lines


@pytest.mark.parametrize(
    "stage, kills",
    [
        ("student", 1),
        pytest.param("teacher", 10, marks=pytest.mark.slow),
        pytest.param("student", 10, marks=pytest.mark.slow),
    ],
)
def test_loader_killed_at_random_costs_no_step(
    nursery, start, tiny_world, teacher_run: Path, tmp_path: Path, stage: str, kills: int
) -> None:
    dice = random.Random(f"{stage} {kills}")
    steps = 20 * kills
    more = (f"steps={steps}", "save_every=5", "workers=2", "data.read_timeout=60")
    names = {
        name: arguments(tiny_world, stage, tmp_path / name, teacher_run, *more)
        for name in ("whole", "killed")
    }
    assert start([*names["whole"], "workers=0"]).code == 0
    faults = len(kill_loaders(nursery, names["killed"], kills, 0.5, dice))
    assert start([*names["killed"], "workers=0"]).code == 0
    assert_same(tmp_path / "killed", tmp_path / "whole")
    assert sum("loss/total" in line for line in logged(tmp_path / "killed")) == steps
    print(f"{stage}: {faults} loader processes killed, {faults} survived, 0 images lost")
    assert faults == kills
