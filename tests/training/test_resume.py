"""A run that was killed, stopped or damaged goes on to the same numbers, bit for bit."""

import json
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

# Runs of 6 steps with a checkpoint after every second and two micro-batches to a step.
ACCUMULATED = ("accumulate=2", "batch_size=6", "steps=6", "save_every=2", "eval_every=3")

KILL_IN_WRITE = """
import os, torch
save = torch.save
def half(payload, path):
    save(payload, path)
    if "step_00000004" in str(path):
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), 9)
torch.save = half
"""


@pytest.fixture(scope="module")
def whole(start, tiny_world, teacher_run: Path, tmp_path_factory) -> dict[str, Path]:
    """A run of each stage that was never interrupted."""
    runs = {}
    for stage in ("teacher", "student"):
        runs[stage] = tmp_path_factory.mktemp("whole") / stage
        ended = start(arguments(tiny_world, stage, runs[stage], teacher_run))
        assert ended.code == 0, ended.err
    return runs


def arguments(world, stage: str, run_dir: Path, teacher_run: Path, *more: str) -> list[str]:
    teacher = (f"stage.teacher={teacher_run}", "batch_size=12") if stage == "student" else ()
    return world.settings(stage, run_dir, *ACCUMULATED, *teacher, *more)


def logged(run_dir: Path) -> list[dict[str, float]]:
    """Lines of metrics.jsonl without what depends on the clock and the process."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("speed/", "memory"))} for line in lines]


def assert_same(run_dir: Path, whole: Path) -> None:
    """Same weights, same optimizer state, same curves without a step missing or double."""
    assert (run_dir / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert logged(run_dir) == logged(whole)
    mine, theirs = (
        torch.load(r / "checkpoints/step_00000006.pt", weights_only=True) for r in (run_dir, whole)
    )
    assert mine["state"] == theirs["state"]
    for key, state in theirs["optimizer"]["state"].items():
        for name, tensor in state.items():
            assert torch.equal(mine["optimizer"]["state"][key][name], tensor)


@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_run_killed_in_step_resumes_to_same_bits(
    start, start_elsewhere, signal_at, tiny_world, teacher_run, whole, tmp_path: Path, stage: str
) -> None:
    settings = arguments(tiny_world, stage, tmp_path / "run", teacher_run, "workers=1")
    assert start_elsewhere(settings, signal_at(signal.SIGKILL, step=4)).code == -signal.SIGKILL
    assert not (tmp_path / "run/model.safetensors").exists()
    ended = start(settings)
    assert ended.code == 0, ended.err
    assert "continuing at step 3 of 6" in ended.out
    assert_same(tmp_path / "run", whole[stage])


@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_run_killed_in_save_resumes_to_same_bits(
    start, start_elsewhere, tiny_world, teacher_run, whole, tmp_path: Path, stage: str
) -> None:
    settings = arguments(tiny_world, stage, tmp_path / "run", teacher_run)
    assert start_elsewhere(settings, KILL_IN_WRITE).code == -signal.SIGKILL
    ended = start(settings)
    assert ended.code == 0, ended.err
    assert "continuing at step 3 of 6" in ended.out
    assert_same(tmp_path / "run", whole[stage])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_signal_saves_and_same_command_resumes(
    start, start_elsewhere, signal_at, tiny_world, teacher_run, whole, tmp_path: Path, number: signal.Signals
) -> None:
    # From outside to the whole group, as Ctrl-C and `timeout` do; so the loader process gets it too.
    outside = 'import subprocess; subprocess.run(["kill", f"-{number}", "--", f"-{os.getpgid(0)}"])'
    settings = arguments(tiny_world, "teacher", tmp_path / "run", teacher_run, "workers=1")
    ended = start_elsewhere(settings, signal_at(number, 1, outside))
    assert ended.code == 128 + number, ended.err
    assert "stopped at step 1, all saved; the same command continues" in ended.out
    assert "Traceback" not in ended.err
    assert (tmp_path / "run/checkpoints/step_00000001.pt").exists()
    ended = start(settings)
    assert "continuing at step 1 of 6" in ended.out
    assert_same(tmp_path / "run", whole["teacher"])


def test_signal_in_last_step_lets_run_finish(
    start, start_elsewhere, signal_at, tiny_world, teacher_run, whole, tmp_path: Path
) -> None:
    settings = arguments(tiny_world, "teacher", tmp_path / "run", teacher_run)
    assert start_elsewhere(settings, signal_at(signal.SIGTERM, step=6)).code == 0
    assert_same(tmp_path / "run", whole["teacher"])


@pytest.fixture
def interrupted(whole, tiny_world, teacher_run, tmp_path: Path) -> tuple[Path, list[str]]:
    """Folder and command of a teacher run that got to step 6 but not to its end."""
    run_dir = tmp_path / "run"
    shutil.copytree(whole["teacher"], run_dir)
    (run_dir / "model.safetensors").unlink()
    settings = (run_dir / "settings.yaml").read_text().replace(str(whole["teacher"]), str(run_dir))
    (run_dir / "settings.yaml").write_text(settings)
    return run_dir, arguments(tiny_world, "teacher", run_dir, teacher_run)


def test_run_killed_after_last_step_only_finishes(start, interrupted, whole) -> None:
    run_dir, settings = interrupted
    ended = start(settings)
    assert ended.code == 0, ended.err
    assert "continuing at step 6 of 6" in ended.out
    assert_same(run_dir, whole["teacher"])
    assert (run_dir / "results.json").read_text() == (whole["teacher"] / "results.json").read_text()


def test_validation_left_undone_is_done_on_resume(start, interrupted, whole) -> None:
    run_dir, settings = interrupted  # as if killed between the line of the scores and the note behind it
    (run_dir / "checkpoints/progress.json").unlink()
    (run_dir / "checkpoints/best.pt").unlink()
    ended = start(settings)
    assert ended.code == 0, ended.err
    assert_same(run_dir, whole["teacher"])
    for name in ("progress.json", "best.pt"):
        mine, theirs = ((run / "checkpoints" / name).read_bytes() for run in (run_dir, whole["teacher"]))
        assert mine == theirs or name == "best.pt"
    assert (run_dir / "checkpoints/best.pt").exists() == (best_step(whole["teacher"]) == 6)


def best_step(run_dir: Path) -> int:
    return torch.load(run_dir / "checkpoints/best.pt", weights_only=True)["state"]["step"]


def test_failing_validation_costs_no_step(
    start, tiny_world, teacher_run, whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ValueError("mine: the disk is gone")

    settings = arguments(tiny_world, "teacher", tmp_path / "run", teacher_run)
    with monkeypatch.context() as patch:
        patch.setattr("depthany.commands.train_command.evaluate", fails)
        ended = start(settings)
    assert (ended.code, ended.err) == (2, "error: mine: the disk is gone\n")
    ended = start(settings)
    assert ended.code == 0, ended.err
    assert "continuing at step 3 of 6" in ended.out
    assert_same(tmp_path / "run", whole["teacher"])
    assert best_step(tmp_path / "run") == best_step(whole["teacher"])


@pytest.mark.parametrize("damage", ["truncated", "empty", "noise"])
def test_damaged_newest_checkpoint_falls_back_to_previous(
    start, interrupted, whole, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir, settings = interrupted
    newest = run_dir / "checkpoints/step_00000006.pt"
    data = newest.read_bytes()
    noise = random.Random(0).randbytes(len(data))
    newest.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "noise": noise}[damage])
    ended = start(settings)
    assert ended.code == 0, ended.err
    assert f"{newest} is damaged" in caplog.text
    assert "continuing at step 4 of 6" in ended.out
    assert_same(run_dir, whole["teacher"])


def test_all_checkpoints_damaged_is_an_error(start, interrupted) -> None:
    run_dir, settings = interrupted
    for path in (run_dir / "checkpoints").glob("step_*.pt"):
        path.write_bytes(b"")
    ended = start(settings)
    assert ended.code == 2
    assert "none of 2 checkpoints can be read; overwrite=true starts from scratch" in ended.err
    assert not (run_dir / "model.safetensors").exists()


def test_cut_line_of_metrics_is_written_again(start, interrupted, whole) -> None:
    run_dir, settings = interrupted
    (run_dir / "checkpoints/step_00000006.pt").unlink()
    text = (run_dir / "metrics.jsonl").read_text()
    (run_dir / "metrics.jsonl").write_text(text[:-25])
    assert start(settings).code == 0
    assert_same(run_dir, whole["teacher"])


def test_run_without_a_usable_image_fails(start, own_world, tmp_path: Path) -> None:
    for path in (own_world.root / "labeled/depth").iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), 2000)).save(path)
    for _ in range(2):  # started again, it says the same
        ended = start(own_world.settings("teacher", tmp_path / "run", "steps=2", "batch_size=4"))
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert (
            "nothing was learned: all 8 labeled images of the run were left out (8 flat depth)" in ended.err
        )
    assert not (tmp_path / "run/model.safetensors").exists()
