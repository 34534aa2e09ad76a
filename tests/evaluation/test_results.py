"""What an evaluation reports: metrics of one's own, and predictions that the alignment shows to be wrong."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from depthany.data.samples import LabeledSample
from depthany.data.targets import Labels
from depthany.evaluation.console import print_results
from depthany.evaluation.fit_problems import FitProblems
from depthany.evaluation.html import Report, best_median_worst
from depthany.evaluation.per_image import write_per_image
from depthany.evaluation.predictors import QUANTITIES, FolderPredictor
from depthany.evaluation.protocol import Protocol
from depthany.evaluation.results import ProtocolResult, statistic, summary, write_results
from depthany.evaluation.run import score_set
from depthany.evaluation.score import Row
from depthany.metrics.align import METHODS, Fit
from depthany.metrics.table import METRICS, Metric

ABOUT = {"complete": True, "not_run": {}}


class Depths:
    """A labeled set in memory; every image is gray."""

    min_depth, max_depth = 0.5, 20.0

    def __init__(self, depths_m: list[NDArray]) -> None:
        self.depths_m = depths_m

    def __len__(self) -> int:
        return len(self.depths_m)

    def name(self, index: int) -> str:
        return f"{index}"

    def read(self, index: int, convert_images: bool = False) -> LabeledSample:
        depth_m = self.depths_m[index]
        image = np.full((*depth_m.shape, 3), 128, np.uint8)
        labels = Labels(depth_m.astype(np.float32), "m", np.ones(depth_m.shape, bool))
        return LabeledSample(self.name(index), image, labels)


def save(folder: Path, maps: list[NDArray]) -> FolderPredictor:
    folder.mkdir()
    for index, values in enumerate(maps):
        np.save(folder / f"{index}.npy", values)
    return FolderPredictor(folder, QUANTITIES["depth"], label=folder.name)


def write_all(result: ProtocolResult, predictors: list, dataset: Depths, out: Path) -> tuple[dict, list, str]:
    """Write every file of a result; return results.json, per_image.csv and report.html as they were read."""
    report = Report(pictures=1)
    report.add(result, predictors, dataset)
    write_results(out, ABOUT, [result])
    write_per_image(out, [result])
    report.write(out, ABOUT)
    print_results([result])
    with open(out / "per_image.csv") as file:
        lines = list(csv.DictReader(file))
    return json.loads((out / "results.json").read_text()), lines, (out / "report.html").read_text()


def absolute(depth_pred_m: NDArray, depth_m: NDArray) -> list[float]:
    return [len(depth_m), np.abs(depth_pred_m - depth_m).sum()]


def near_share(depth_pred_m: NDArray, depth_m: NDArray, known: NDArray) -> list[float] | None:
    """Share of pixels predicted nearer than 3 m; not defined for an image of a single pixel."""
    return [1.0, float((depth_pred_m[known] < 3).mean())] if known.size > 1 else None


@pytest.fixture
def in_metres(monkeypatch: pytest.MonkeyPatch) -> Protocol:
    """A protocol with two metrics that the table does not have."""
    monkeypatch.setitem(METRICS, "mae", Metric("MAE", "lower", absolute))
    monkeypatch.setitem(METRICS, "near", Metric("near <3 m", "higher", near_share, over="maps"))
    return Protocol("p", align="none", max_depth=20, metrics=("mae", "near", "abs_rel"))


def test_own_metrics_reach_every_output(
    in_metres: Protocol, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = Depths([np.full((1, 3), 4.0), np.full((1, 1), 4.0)])
    first = save(tmp_path / "a", [np.array([[2.0, 4, 4]]), np.array([[7.0]])])
    second = save(tmp_path / "b", [np.array([[2.0, 2, 4]]), np.array([[7.0]])])
    result = ProtocolResult(in_metres, {}, {}, 2, 2)
    for predictor in (first, second):
        result.scored[predictor.label] = score_set(predictor, dataset, in_metres)
    rows = result.scored["a"].rows
    found, lines, page = write_all(result, [first, second], dataset, tmp_path)

    # mae: 2/3 and 3 per image, 5/4 over all pixels; near: 1/3, and not defined for the single pixel
    assert summary(rows, in_metres)["mae"] == pytest.approx((2 / 3 + 3) / 2)
    assert summary(rows, replace(in_metres, averaging="pixel"))["mae"] == pytest.approx(5 / 4)
    scores = found["protocols"]["p"]["scores"]["a"]
    assert list(scores["mean"]) == ["mae", "near", "abs_rel"]
    assert scores["mean"]["near"] == pytest.approx(1 / 3)
    assert scores["interval_95"]["mae"] == pytest.approx([2 / 3, 3])
    assert found["protocols"]["p"]["differences"]["b - a"]["values"]["mae"] == pytest.approx(1 / 3)
    assert [line["near"] for line in lines] == ["0.3333333333333333", "", "0.6666666666666666", ""]
    assert "<h3>best, by MAE of a</h3>" in page
    assert "near &lt;3 m" in page
    printed = capsys.readouterr().out
    assert "MAE" in printed and "near <3 m" in printed
    assert "p, a: no near for 1 of 2 images" in printed


def test_score_that_indexes_from_the_front_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "mae", Metric("MAE", "lower", absolute, lambda sums: sums[1] / sums[0]))
    rows = [Row(i, f"{i}", {"mae": 1.0}, {"mae": np.array([3.0, 3.0])}) for i in range(3)]
    protocol = Protocol("p", metrics=("mae",), averaging="pixel")
    with pytest.raises(ValueError, match=r"metric mae: .* expected \(10,\): index sums from the end"):
        statistic(rows, protocol)(np.ones((10, 3)))


@pytest.mark.parametrize("metric, best", [("abs_rel", "0"), ("delta1", "2")])
def test_best_images_follow_the_direction(metric: str, best: str) -> None:
    rows = [Row(i, f"{i}", {metric: 0.1 * (i + 1)}, {}) for i in range(3)]
    assert [row.name for row in best_median_worst(rows, metric, 1)["best"]] == [best]


def slopes(count: int) -> list[NDArray]:
    return [np.linspace(1, 5 + i, 12).reshape(3, 4) for i in range(count)]


def test_negative_scales_are_warned_of_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset, protocol = Depths(slopes(4)), Protocol("p", max_depth=20)
    metres = save(tmp_path / "metres", dataset.depths_m)
    metres = replace(metres, quantity=QUANTITIES["disparity"])  # metres taken as disparity
    result = ProtocolResult(protocol, {}, {}, 4, 4, {"metres": score_set(metres, dataset, protocol)})
    found, lines, page = write_all(result, [metres], dataset, tmp_path)
    warning = "4 of 4 images fitted with a negative scale: near and far may be swapped"
    scores = found["protocols"]["p"]["scores"]["metres"]
    assert scores["negative_scales"] == 4
    assert [line.startswith(warning) for line in scores["warnings"]] == [True]
    assert all(float(line["scale"]) < 0 for line in lines)
    assert warning in page
    assert f"p, metres: warning: {warning}" in " ".join(capsys.readouterr().out.split())


def rows_with(scales: list[float]) -> list[Row]:
    return [Row(i, f"{i}", {}, {}, Fit(scale, 0.0)) for i, scale in enumerate(scales)]


def test_few_negative_scales_are_counted_without_warning() -> None:
    few, many = FitProblems.of(rows_with([-1.0] + 19 * [1.0])), FitProblems.of(rows_with([-1.0] + 18 * [1.0]))
    assert few.negative == many.negative == ("0",)
    assert few.notes() == ["1 fitted with a negative scale (near and far swapped), scored as fitted: 0"]
    assert not few.warnings()
    assert len(many.warnings()) == 1


@pytest.mark.parametrize("value", [0.0, 7.0])
@pytest.mark.parametrize("align", METHODS)
@pytest.mark.parametrize("align_per", ["image", "sequence"])
def test_constant_predictions_are_counted_and_never_perfect(
    tmp_path: Path, align: str, align_per: str, value: float
) -> None:
    dataset = Depths(slopes(3))
    protocol = Protocol("p", space="own", align=align, align_per=align_per, max_depth=20)
    predictor = save(tmp_path / "dead", [np.full((3, 4), value)] * 3)
    rows = score_set(predictor, dataset, protocol).rows
    problems = FitProblems.of(rows)
    assert problems.constant == ("0", "1", "2")
    assert len(problems.warnings()) == 1
    for row in rows:
        assert row.scores["abs_rel"] > 0.1
        assert row.scores["delta1"] < 1


@pytest.mark.parametrize("align", METHODS)
def test_degenerate_truth_is_never_perfect(tmp_path: Path, align: str) -> None:
    free = METHODS[align].free
    depths = [*slopes(1), np.full((3, 4), 5.0), np.array([[2.0, 3.0, 4.0][: max(free, 1)]])]
    dataset, protocol = Depths(depths), Protocol("p", align=align, space="own", max_depth=20)
    predictor = save(tmp_path / "maps", [depths[0], np.full((3, 4), 5.0), 2 * depths[2]])
    result = ProtocolResult(protocol, {}, {}, 3, 3, {"maps": score_set(predictor, dataset, protocol)})
    scored = result.scored["maps"]
    if align == "none":  # metres say something even where they are the same everywhere
        assert [row.scores["abs_rel"] for row in scored.rows] == pytest.approx([0, 0, 1], abs=1e-6)
        return
    assert [row.name for row in scored.rows] == ["0"]
    assert scored.degenerate == ["1", "2"]
    assert result.notes("maps") == [
        "2 with a constant ground truth or too few pixels for a fit, left out: 1, 2"
    ]
    assert result.is_partial("maps")
