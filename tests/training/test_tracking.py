"""What a run tells: the curves, the pictures and the warning."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer import event_file_writer
from torch import nn

from depthany.data.batch import Batch
from depthany.display.pictures import at_size, colour, comparison_row
from depthany.display.progress import time_in_words
from depthany.metrics.table import DEFAULT_METRICS
from depthany.training.meter import Meter, log_scalars
from depthany.training.stages.base import StageOutput
from depthany.training.tracking import Tracker

COMMON = {
    "loss/total",
    "loss/labeled",
    "output/zeros",
    *(f"output/{name}" for name in ("min", "max", "spread", "constant")),
    "output/counted_labeled",
    "learning_rate/encoder",
    "learning_rate/decoder",
    "learning_rate/head",
    "optimizer/gradient_norm",
    "speed/images_per_second",
    "speed/share_waiting_for_data",
    "speed/memory_gb",
    "speed/share_waiting_for_cpu",
    *(f"val/mine/{name}" for name in (*DEFAULT_METRICS["depth"], "negative_scales", "constant_predictions")),
    *(f"val/mine/{name}" for name in ("degenerate_truths", "unreadable")),
}
OF_STUDENT = {"loss/unlabeled", "output/counted_unlabeled", "loss/feature", "feature_alignment/tokens_kept"}
OF_STUDENT |= {"feature_alignment/steps_acting"}
OF_STUDENT |= {f"feature_alignment/distance/{quantile}" for quantile in ("p10", "p50", "p90", "max")}


@pytest.fixture(autouse=True)
def counted_from_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard reads the files of one second by name, and the number in it says .10 before .9."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def events(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir), size_guidance={"images": 0, "scalars": 0, "tensors": 0}).Reload()


def lines(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("run, names", [("teacher_run", COMMON), ("student_run", COMMON | OF_STUDENT)])
def test_tensorboard_and_metrics_jsonl_hold_the_same_numbers(
    request: pytest.FixtureRequest, run: str, names: set[str]
) -> None:
    run_dir = request.getfixturevalue(run)
    board, written = events(run_dir), lines(run_dir)
    assert set(board.Tags()["scalars"]) == names
    for name in names:
        of_board = [(event.step, event.value) for event in board.Scalars(name)]
        of_file = [(line["step"], np.float32(line[name])) for line in written if name in line]
        assert of_board == of_file
        assert len(of_file) == (2 if name.startswith("val/") else 6)


def test_tensorboard_shows_the_settings(student_run: Path) -> None:
    board = events(student_run)
    text = board.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "batch_size: 6" in text
    assert "frozen_input: perturbed" in text


def test_tensorboard_compares_runs_by_hyperparameters(student_run: Path) -> None:
    board = events(student_run)
    data = {tag: of.plugin_data.content for tag, of in board.summary_metadata.items()}
    begun = HParamsPluginData.FromString(data["_hparams_/session_start_info"]).session_start_info.hparams
    assert begun["batch_size"].number_value == 6 and begun["optimizer.lr"].number_value == 1e-3
    assert begun["stage.name"].string_value == "student" and "run_dir" not in begun
    of_scores = HParamsPluginData.FromString(data["_hparams_/experiment"]).experiment.metric_infos
    assert "val/mine/abs_rel" in {info.name.tag for info in of_scores} <= set(board.Tags()["scalars"])
    assert len(list(student_run.rglob("events.out.*"))) == 1, "no folder beside that of the run"


def test_pictures_show_each_kind_of_image(student_run: Path) -> None:
    board = events(student_run)
    columns = {"crops/labeled": 4, "crops/unlabeled": 5}
    assert set(board.Tags()["images"]) == columns.keys() | {"examples/mine"}
    for (tag, tiles), rows in zip(columns.items(), (2, 4)):  # 2 labeled and 4 unlabeled images to a batch
        pictures = board.Images(tag)
        assert [picture.step for picture in pictures] == [3, 6]
        shown = cv2.imdecode(np.frombuffer(pictures[-1].encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
        line = (shown.shape[0] - rows * 28) // 3  # of words, one above and two below
        assert line > 0 and (shown[:line] < 100).any() and (shown[-line:] < 100).any()
        for tile in np.split(shown[line : -2 * line, : tiles * 28], tiles, axis=1):
            assert tile.std() > 1, "no column is a blank"


def test_total_is_weighted_sum_of_logged_terms(student_run: Path) -> None:
    for line in lines(student_run):
        if "loss/total" in line:
            terms = [line[f"loss/{name}"] for name in ("labeled", "unlabeled", "feature")]
            assert line["loss/total"] == pytest.approx(sum(terms) / 3, rel=1e-5)


def test_logged_learning_rates_are_those_used(teacher_run: Path) -> None:
    rates = [line["learning_rate/encoder"] for line in lines(teacher_run) if "learning_rate/encoder" in line]
    assert rates == pytest.approx([1e-3 * (1 - step / 6) for step in range(6)])


def output(loss: float, zero_outputs: float = 0.0) -> StageOutput:
    return StageOutput(torch.tensor(loss), {"output/zeros": torch.tensor(zero_outputs)}, {})


def test_meter_averages_since_the_last_line() -> None:
    meter = Meter()
    for loss in (1.0, 3.0):  # one step of two micro-batches: 2
        meter.add(output(loss), images=4, micro_batches=2)
    meter.add(output(5.0), images=4, micro_batches=1)  # the last step, of one: 5
    assert meter.means()["loss/total"] == 3.5
    assert meter.images == 12
    meter.restart()
    meter.add(output(7.0), images=4, micro_batches=1)
    assert meter.means()["loss/total"] == 7.0


def test_mean_ignores_micro_batches_without_the_scalar() -> None:
    meter = Meter()
    meter.add(output(2.0, zero_outputs=0.5), images=4, micro_batches=2)
    meter.add(StageOutput(torch.tensor(0.0), {}, {}), images=0, micro_batches=2)  # all left out
    meter.add(StageOutput(torch.tensor(8.0), {}, {}), images=2, micro_batches=1)
    means = meter.means()
    assert means["loss/total"] == 6.0  # (2 / 2 + 8) / 1.5
    assert means["output/zeros"] == 0.5


def test_step_without_image_has_no_loss(tmp_path: Path, capsys) -> None:
    tracker, meter = Tracker(tmp_path, 0, 10, ""), Meter()
    meter.add(StageOutput(torch.tensor(0.0), {}, {}), images=0, micro_batches=1)
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "name": "encoder"}], lr=1.0)
    log_scalars(tracker, 3, meter, optimizer, torch.tensor(0.0), torch.device("cpu"))
    tracker.close()
    assert "step 3/10  loss nan  0.0 images/s" in capsys.readouterr().out
    (line,) = lines(tmp_path)
    assert line["step"] == 3
    assert not any(name.startswith("loss/") for name in line)


def test_share_of_waiting_ignores_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("depthany.training.tracking.time.perf_counter", lambda: now[0])

    def slow_batches():
        while True:
            now[0] += 1.0
            yield Batch(*(torch.zeros(1) for _ in range(4)))

    meter = Meter()
    meter.wait_for(slow_batches())
    now[0] += 3.0
    with meter.paused():
        now[0] += 100.0
    meter.add(output(1.0), images=8, micro_batches=1)
    assert meter.means()["speed/share_waiting_for_data"] == 0.25
    assert meter.means()["speed/images_per_second"] == 2.0


@pytest.mark.parametrize("zeros, warned", [(1.0, True), (0.95, True), (0.5, False)])
def test_dead_output_relu_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture, zeros: float, warned: bool
) -> None:
    tracker, meter = Tracker(tmp_path, 0, 10, ""), Meter()
    meter.add(output(1.0, zeros), images=1, micro_batches=1)
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "name": "encoder"}], lr=1.0)
    log_scalars(tracker, 3, meter, optimizer, torch.tensor(0.0), torch.device("cpu"))
    tracker.close()
    printed = capsys.readouterr().out
    assert ("warning: at step 3: dead output ReLU" in printed) is warned


def test_time_to_go_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr("depthany.training.tracking.time.monotonic", lambda: now[0])
    tracker = Tracker(tmp_path, 0, 100, "", loggers=["jsonl"])
    for step in range(1, 51):
        now[0] += 30.0 if step <= 5 else 3.0  # the first steps are slow
        tracker.progress(step, 1.0, 1.0)
    tracker.close()
    said = [line for line in capsys.readouterr().out.splitlines() if "to go" in line]
    assert said == [f"about {time_in_words(85 * 3.0)} to go on this machine, at the rate of steps 5 to 15"]


def test_resume_logs_no_step_twice(tmp_path: Path) -> None:
    for start, last in ((0, 7), (4, 9)):  # killed after step 7, the last checkpoint at 4
        tracker = Tracker(tmp_path, start, 9, "")
        for step in range(start + 1, last + 1):
            tracker.scalars(step, {"loss/total": 10.0 * start + step})
        tracker.close()
    expected = [(step, step if step <= 4 else 40 + step) for step in range(1, 10)]
    assert [(line["step"], line["loss/total"]) for line in lines(tmp_path)] == expected
    assert [(event.step, event.value) for event in events(tmp_path).Scalars("loss/total")] == expected


def test_scores_of_a_repeated_validation_replace_those_before(tmp_path: Path) -> None:
    for start, validated in ((0, 0), (4, 2)):  # killed within the validation of step 4, after its line
        tracker = Tracker(tmp_path, start, 9, "", validated_step=validated)
        for step in (2, 4) if start == 0 else (4,):
            if step > start:
                tracker.scalars(step, {"loss/total": float(step)})
            tracker.scalars(step, {"val/mine/abs_rel": float(step)})
        tracker.close()
    names = ("loss/total", "val/mine/abs_rel")
    assert lines(tmp_path) == [{"step": step, name: float(step)} for step in (2, 4) for name in names]


def test_run_without_checkpoint_leaves_no_curves(tmp_path: Path) -> None:
    for last in (5, 3):
        tracker = Tracker(tmp_path, 0, 9, "")
        for step in range(1, last + 1):
            tracker.scalars(step, {"loss/total": float(step * last)})
        tracker.close()
    expected = [(1, 3.0), (2, 6.0), (3, 9.0)]
    assert [(line["step"], line["loss/total"]) for line in lines(tmp_path)] == expected
    assert [(event.step, event.value) for event in events(tmp_path).Scalars("loss/total")] == expected


def test_near_is_bright_and_invalid_is_gray() -> None:
    values = np.array([[0.0, 0.5, 1.0, 0.7]])
    mask = np.array([[True, True, True, False]])
    shades = colour(values, 0.0, 1.0, mask, "inferno")
    brightness = shades.astype(float).sum(2)[0]
    assert brightness[0] < brightness[1] < brightness[2]
    assert shades[0, 3].tolist() == [128, 128, 128]
    bgr = cv2.applyColorMap(np.uint8([[255]]), cv2.COLORMAP_INFERNO)[0, 0]
    assert shades[0, 2].tolist() == bgr[::-1].tolist(), "RGB, not OpenCV's BGR"


def test_prediction_is_shown_fitted_to_target() -> None:
    target = np.random.default_rng(0).random((8, 10)).astype(np.float32)
    mask = target > 0.1
    image = np.zeros((8, 10, 3), np.uint8)
    row = comparison_row([image], target, 5 * target - 3, mask)
    _, shown, predicted, error = np.split(row, 4, axis=1)
    assert np.abs(shown[mask].astype(int) - predicted[mask]).max() <= 2
    assert error[mask].max() <= colour(np.zeros((1, 1)), 0, 1, colour_map="inferno").max() + 2


def test_target_without_valid_pixel_is_shown() -> None:
    zeros, nothing = np.zeros((4, 4), np.float32), np.zeros((4, 4), bool)
    row = comparison_row([np.zeros((4, 4, 3), np.uint8)], zeros, zeros, nothing)
    assert (row[:, 4:8] == 128).all()


def test_metres_are_coloured_from_far_to_near() -> None:
    target = np.array([[1.0, 2.0], [4.0, 0.0]], np.float32)
    mask = target > 0
    image = np.zeros((2, 2, 3), np.uint8)
    row = comparison_row([image], target, np.where(mask, 1.25 * target, 8), mask, in_metres=True)
    _, shown, predicted, error = np.split(row, 4, axis=1)
    near, far = colour(np.array([[1, 0]]), 0, 1)[0]
    assert (shown[0, 0] == near).all() and (shown[1, 0] == far).all()
    assert (shown[1, 1] == 128).all(), "unknown"
    assert (predicted[1] == far).all(), "farther than the farthest"
    assert (error[mask] == colour(np.array([[0.25]]), 0, 0.5, colour_map="inferno")[0, 0]).all(), (
        "25 % of 50 %"
    )
    assert at_size(mask, (4, 4)).tolist() == np.kron(mask, np.ones((2, 2), bool)).tolist()


def test_share_of_clipped_steps_is_logged() -> None:
    meter = Meter()
    for norm in (0.05, 0.2, 3.0, 0.1):
        meter.add(output(1.0), images=4, micro_batches=1)
        meter.add_step(torch.tensor(norm), 0.1)
    assert meter.means()["optimizer/clipped_steps"] == 0.5
    meter.restart()
    meter.add(output(1.0), images=4, micro_batches=1)
    meter.add_step(torch.tensor(5.0), None)
    assert "optimizer/clipped_steps" not in meter.means()
