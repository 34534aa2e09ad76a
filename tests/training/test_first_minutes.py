"""What a run shows of itself: examples, and a busy machine."""

import json
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from depthany.evaluation.example_sheet import GAP, WIDTH
from depthany.system import cpu_wait
from depthany.training.meter import Meter


def test_run_ends_with_a_picture_of_examples(teacher_run: Path) -> None:
    width, height = Image.open(teacher_run / "examples.png").size
    assert width == 4 * (WIDTH + GAP)  # input, truth, prediction, error
    assert height > 2 * WIDTH / 2  # of two images


def test_log_shows_the_same_examples_at_every_validation(teacher_run: Path) -> None:
    events = EventAccumulator(str(teacher_run), size_guidance={"images": 0}).Reload()
    assert [each.step for each in events.Images("examples/mine")] == [3, 6]


def test_share_of_waiting_counts_since_last_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_wait, "SCHEDULER", tmp_path / "schedstat")
    assert cpu_wait.CpuWait().share() is None  # another system
    (tmp_path / "schedstat").write_text("1000 500 1\n")
    wait = cpu_wait.CpuWait()
    assert wait.share() is None
    (tmp_path / "schedstat").write_text("1300 600 4\n")
    assert wait.share() == pytest.approx(100 / 400)


def test_busy_machine_is_named_once() -> None:
    meter = Meter()
    assert meter.busy_line({"speed/share_waiting_for_cpu": 0.1}) is None
    assert "50%" in str(meter.busy_line({"speed/share_waiting_for_cpu": 0.5}))
    assert meter.busy_line({"speed/share_waiting_for_cpu": 0.5}) is None


def test_first_lines_name_stage_and_folder(start, tiny_world, teacher_run: Path, tmp_path: Path) -> None:
    """And a run without validation says why it has no examples; how often it validates changes no loss."""
    settings = tiny_world.settings("teacher", tmp_path / "run", "image_every=3", "eval_every=6")
    ended = start([*settings, "steps=2"])
    assert ended.code == 0, ended.err
    first, second = ended.out.splitlines()[:2]
    assert first.startswith("training a teacher: micro on 4 labeled images, 2 steps, cpu in float32")
    assert second == f"results in {tmp_path / 'run'}    curves: tensorboard --logdir {tmp_path}"
    assert start([*settings, "overwrite=true"]).code == 0
    assert losses(tmp_path / "run") == losses(teacher_run)

    without = [word for word in settings if "data.val" not in word]
    ended = start([*without, "steps=1", "overwrite=true"])
    assert "no examples.png, since no validation set is given: name one in data.val" in ended.out


def losses(run_dir: Path) -> list[float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss/labeled"] for line in lines if "loss/labeled" in line]
