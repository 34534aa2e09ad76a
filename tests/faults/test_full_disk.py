"""The disk fills up under a training run: nothing that was written is lost, and the same command goes on."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from depthany.training.checkpoints.state import read_checkpoint
from depthany.training.log_files import LogFiles

FULL, ALMOST_FULL = 0, 100_000  # bytes left; a checkpoint of the tiny model is larger than the second
STAGES = ("teacher", "student")
LONG = "x" * 5000  # a name longer than the rest of a file's last block, which can be written on a full disk
CHANGES = ("speed/", "memory", LONG)  # begin the names of what the clock, the process and this file decide


@pytest.fixture
def long_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line of the log needs a new block of the disk."""
    write = LogFiles.scalars
    monkeypatch.setattr(
        LogFiles, "scalars", lambda self, step, values: write(self, step, {LONG: 0.0, **values})
    )


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        pytest.skip("no mount here: a tmpfs cannot be made")
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=30)


@pytest.fixture
def at_step() -> Iterator[Callable[[int, Callable[[], object]], None]]:
    """Have something happen as the optimizer step with this number, from 1, begins."""
    happens: dict[int, Callable[[], object]] = {}
    seen: list[int] = []

    def hook(*_: object) -> None:
        seen.append(1)
        happens.get(len(seen), lambda: None)()

    handle = register_optimizer_step_pre_hook(hook)
    yield happens.__setitem__
    handle.remove()


@pytest.fixture(scope="module")
def whole(start, tiny_world, teacher_run: Path, tmp_path_factory) -> dict[str, Path]:
    """A run of each stage that nothing happened to."""
    runs = {stage: tmp_path_factory.mktemp("whole") / stage for stage in STAGES}
    for stage, run_dir in runs.items():
        ended = start(arguments(tiny_world, stage, run_dir, teacher_run))
        assert ended.code == 0, ended.err
    return runs


def arguments(world, stage: str, run_dir: Path, teacher_run: Path, *more: str) -> list[str]:
    teacher = (f"stage.teacher={teacher_run}",) if stage == "student" else ()
    return world.settings(stage, run_dir, "eval_every=0", *teacher, *more)  # a checkpoint every second step


def fill(disk: Path, room: int, run_dir: Path) -> None:
    """Leave `room` bytes, once the checkpoint of step 2 is written."""
    until = time.monotonic() + 60
    while not (run_dir / "checkpoints/step_00000002.pt").exists():
        assert time.monotonic() < until, "the first checkpoint did not come"
        time.sleep(0.01)
    occupy(disk, room)


def occupy(disk: Path, room: int = FULL) -> None:
    with open(disk / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            file.truncate(file.tell() - room)


def lines(run_dir: Path) -> list[dict[str, float]]:
    written = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(CHANGES)} for line in written]


def lost(out: str) -> tuple[int, int]:
    """Lines of metrics.jsonl and of TensorBoard that the run says are lost."""
    told = re.search(r"lost from the log in \S+: (\d+) of metrics.jsonl, (\d+) of TensorBoard", out)
    assert told is not None, out
    return int(told[1]), int(told[2])


def missing(run_dir: Path, whole: Path) -> tuple[int, int]:
    """Those that the run lacks; none is there that it should not have."""
    mine, theirs = lines(run_dir), lines(whole)
    assert all(line in theirs for line in mine)
    return len(theirs) - len(mine), len(drawn(whole)) - len(drawn(run_dir))


def drawn(run_dir: Path) -> list[tuple[str, int]]:
    """One curve of each kind of line that TensorBoard shows, with the steps of its points; the summary."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    summary = [("hparams", 6)] if "_hparams_/session_start_info" in hparams_of(events) else []
    names = {"optimizer/gradient_norm", "val/mine/abs_rel"} & set(events.Tags()["scalars"])
    points = [(name, event.step) for name in sorted(names) for event in events.Scalars(name)]
    return points + summary


def hparams_of(events: EventAccumulator) -> Iterable[str]:
    """Returns the tags of the tab HPARAMS."""
    try:
        return events.PluginTagToContent("hparams")
    except KeyError:
        return ()


def assert_same(run_dir: Path, whole: Path) -> None:
    """Same model, same optimizer state, same curves."""
    assert (run_dir / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert lines(run_dir) == lines(whole)
    mine, theirs = (read_checkpoint(each / "checkpoints/step_00000006.pt") for each in (run_dir, whole))
    assert mine["state"] == theirs["state"]
    for key, state in theirs["optimizer"]["state"].items():
        assert all(torch.equal(mine["optimizer"]["state"][key][name], state[name]) for name in state)


def assert_only_step_2(run_dir: Path) -> None:
    (only,) = (run_dir / "checkpoints").iterdir()  # no half file, hidden or not
    assert only.name == "step_00000002.pt"
    assert read_checkpoint(only)["state"]["step"] == 2
    assert not (run_dir / "model.safetensors").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_failed_save_stops_run_which_resumes_bitwise(
    start, tiny_world, teacher_run: Path, whole, disk: Path, at_step, stage: str
) -> None:
    run_dir = disk / "run"
    settings = arguments(tiny_world, stage, run_dir, teacher_run)
    at_step(3, lambda: fill(disk, ALMOST_FULL, run_dir))
    ended = start(settings)
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    told = ended.err + ended.out  # in `out` where the next line of the log met the full disk a moment before
    assert f"cannot write {run_dir}/checkpoints/step_00000004.pt: No space left on device" in told
    assert "make room, then the same command continues from step 2" in told
    assert_only_step_2(run_dir)
    (disk / "filler").unlink()
    ended = start(settings)
    assert ended.code == 0, ended.err
    assert "continuing at step 2 of 6" in ended.out
    assert_same(run_dir, whole[stage])


@pytest.mark.parametrize("stage", STAGES)
def test_continue_trains_on_and_fails_without_model(
    start, tiny_world, teacher_run: Path, whole, disk: Path, at_step, long_lines, stage: str
) -> None:
    run_dir = disk / "run"
    settings = arguments(tiny_world, stage, run_dir, teacher_run, "if_save_fails=continue")
    at_step(3, lambda: fill(disk, FULL, run_dir))
    ended = start(settings)
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert f"error: cannot write {run_dir}/results.json: No space left on device" in ended.err
    assert "step 6/6" in ended.out
    for name in ("step_00000004.pt", "best.pt", "step_00000006.pt"):
        assert f"warning: cannot write {run_dir}/checkpoints/{name}: No space left on device" in ended.out
    assert ended.out.count("lines of the log are lost from here on") == 1
    assert lost(ended.out) == missing(run_dir, whole[stage])
    assert_only_step_2(run_dir)
    (disk / "filler").unlink()
    ended = start(settings)
    assert ended.code == 0, ended.err
    assert "continuing at step 2 of 6" in ended.out
    assert_same(run_dir, whole[stage])


@pytest.mark.parametrize("stage", STAGES)
def test_continue_ends_well_once_there_is_room(
    start, tiny_world, teacher_run: Path, whole, disk: Path, at_step, long_lines, stage: str
) -> None:
    run_dir = disk / "run"
    at_step(3, lambda: fill(disk, FULL, run_dir))
    # The writer works on step 4 while step 5 is computed: room comes when both attempts have ended.
    at_step(5, lambda: until_none_is_half(run_dir) or (disk / "filler").unlink())
    ended = start(arguments(tiny_world, stage, run_dir, teacher_run, "if_save_fails=continue"))
    assert ended.code == 0, ended.err
    assert "step_00000004.pt: No space left" in ended.out and "step_00000006.pt: " not in ended.out
    assert lost(ended.out) == missing(run_dir, whole[stage])
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert names == ["best.pt", "progress.json", "step_00000002.pt", "step_00000006.pt"]
    assert (run_dir / "model.safetensors").read_bytes() == (whole[stage] / "model.safetensors").read_bytes()


def until_none_is_half(run_dir: Path) -> None:
    """Wait for the write of step 4 to have failed."""
    until, partial = time.monotonic() + 60, run_dir / "checkpoints/.step_00000004.pt.partial"
    time.sleep(0.2)
    while partial.exists():
        assert time.monotonic() < until, "the write did not end"
        time.sleep(0.01)


def test_unwritable_log_stops_run_in_one_line(
    start, tiny_world, teacher_run: Path, whole, disk: Path, at_step, long_lines
) -> None:
    run_dir = disk / "run"
    settings = arguments(tiny_world, "teacher", run_dir, teacher_run)
    at_step(3, lambda: fill(disk, FULL, run_dir))
    ended = start(settings)
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert f"error: cannot write the log in {run_dir}: No space left on device; the last" in ended.err
    assert_only_step_2(run_dir)
    (disk / "filler").unlink()
    assert start(settings).code == 0
    assert_same(run_dir, whole["teacher"])


@pytest.mark.parametrize("mode, code", [("stop", 2), ("continue", 128 + signal.SIGTERM)])
def test_signal_on_full_disk_claims_no_save(
    start, tiny_world, teacher_run: Path, whole, disk: Path, at_step, mode: str, code: int
) -> None:
    run_dir = disk / "run"
    settings = arguments(tiny_world, "teacher", run_dir, teacher_run, f"if_save_fails={mode}")
    at_step(3, lambda: fill(disk, ALMOST_FULL, run_dir))
    at_step(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    ended = start(settings)
    assert ended.code == code
    assert "all saved" not in ended.out
    told = "stopped at step 4, saved up to step 2; the same command continues"
    assert (told in ended.out) is (mode == "continue")
    assert_only_step_2(run_dir)
    (disk / "filler").unlink()
    assert start(settings).code == 0
    assert_same(run_dir, whole["teacher"])


def test_lost_lines_are_reported_once_and_counted(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Files of one second are read in the order of their names, and .10 comes before .9
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    told: list[str] = []
    log = LogFiles(disk, 0, "a: 1", goes_on=True, tell=told.append)
    for step in range(1, 10):
        if step == 4:
            occupy(disk)
        if step == 8:
            (disk / "filler").unlink()
        log.scalars(step, {"loss": 0.5 * step, LONG: 0.0})
    log.close()
    assert [line["loss"] for line in lines(disk)] == [0.5, 1.0, 1.5, 4.0, 4.5]
    events = EventAccumulator(str(disk), size_guidance={"scalars": 0}).Reload()
    assert [(e.step, e.value) for e in events.Scalars(LONG)] == [(step, 0.0) for step in (1, 2, 3, 8, 9)]
    assert log.lost == {"metrics.jsonl": 4, "TensorBoard": 4}
    first, last = told
    assert first.startswith(
        f"warning: cannot write the log in {disk}: No space left on device; training goes"
    )
    assert last == f"warning: lines lost from the log in {disk}: 4 of metrics.jsonl, 4 of TensorBoard"
    assert len(list(disk.glob("events*"))) == 2, "no file for each line that was tried"


def test_log_does_not_begin_on_full_disk(disk: Path) -> None:
    occupy(disk)
    with pytest.raises(ValueError, match=f"cannot write the log in {disk}: No space left on device"):
        LogFiles(disk, 0, LONG, goes_on=True, tell=print)
    assert not list(disk.glob("events*"))


@pytest.mark.parametrize("mode", ["stop", "continue"])
def test_file_size_limit_fails_like_full_disk(
    start, start_elsewhere, tiny_world, teacher_run: Path, whole, tmp_path: Path, mode: str
) -> None:
    run_dir = tmp_path / "run"
    settings = arguments(tiny_world, "teacher", run_dir, teacher_run, f"if_save_fails={mode}")
    size = os.path.getsize(whole["teacher"] / "checkpoints/step_00000006.pt")
    model = os.path.getsize(whole["teacher"] / "model.safetensors")
    assert model < size // 2, "the model still fits"
    limit = f"""
import os, resource, time
from torch.optim.optimizer import register_optimizer_step_pre_hook
seen = []
def hook(*_):
    seen.append(1)
    if len(seen) == 3:
        until = time.monotonic() + 60
        while not os.path.exists({str(run_dir / "checkpoints/step_00000002.pt")!r}):
            assert time.monotonic() < until
            time.sleep(0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({size // 2}, resource.RLIM_INFINITY))
register_optimizer_step_pre_hook(hook)
"""
    ended = start_elsewhere(settings, limit)
    told = {"stop": ended.err, "continue": ended.out}[mode]
    assert f"cannot write {run_dir}/checkpoints/step_00000004.pt: File too large" in told
    assert "Traceback" not in ended.err
    if mode == "stop":
        assert ended.code == 2
        assert_only_step_2(run_dir)
        assert start(settings).code == 0
        assert_same(run_dir, whole["teacher"])
    else:
        assert ended.code == 0, ended.err
        weights = [(each / "model.safetensors").read_bytes() for each in (run_dir, whole["teacher"])]
        assert weights[0] == weights[1]
        assert lines(run_dir) == lines(whole["teacher"])
