"""Metres under protocols of ZoeDepth's kind: input size, strict range, NaN, and error without scale."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from depthany.evaluation.predictors import QUANTITIES, FolderPredictor
from depthany.evaluation.protocol import Protocol
from depthany.evaluation.protocol_files import Chosen, leave_out_unfit
from depthany.evaluation.results import scale_report
from depthany.evaluation.score import Row, score_together, select
from depthany.inference.model_input import FixedSize
from depthany.models.preprocess import Preprocessing

METRES = Protocol("m", align="none", min_depth=1.0, max_depth=10.0)


def scored(prediction: list[float], depth_m: list[float], protocol: Protocol = METRES) -> list[Row]:
    disparity = np.float32([[1 / each for each in depth_m]])
    known = np.ones_like(disparity, bool)
    pixels = select(np.float32([prediction]), "depth", disparity, known, protocol)
    return score_together([pixels], "depth", protocol)


@pytest.mark.parametrize(
    "image, keep_aspect, multiple, shape",
    [
        ((352, 1216), False, 14, (392, 518)),
        ((352, 1216), True, 14, (392, 1358)),  # the factor of the height is closer to 1
        ((480, 640), True, 14, (392, 518)),
        ((352, 1216), False, 16, (384, 512)),
    ],
)
def test_fixed_size_is_that_of_zoedepth(
    image: tuple[int, int], keep_aspect: bool, multiple: int, shape: tuple[int, int]
) -> None:
    assert FixedSize((392, 518), keep_aspect).input_shape(*image, multiple) == shape


def test_fixed_size_resizes_twice_and_normalises() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    once, twice = FixedSize((28, 42)), FixedSize((28, 42), resize_first=(10, 16))
    preprocessing = Preprocessing()
    values = once.prepare(image, preprocessing)  # [3 28 42]
    corners = values[:, [0, 0, -1, -1], [0, -1, 0, -1]].T  # aligned: those of the image
    pixels = torch.tensor(image[[0, 0, -1, -1], [0, -1, 0, -1]] / 255.0, dtype=torch.float32)
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    assert torch.allclose(corners, (pixels - mean) / std, atol=1e-5)
    small = F.interpolate(torch.tensor(image / 255.0).permute(2, 0, 1)[None], (10, 16), mode="bilinear")
    expected = F.interpolate(small, (28, 42), mode="bilinear", align_corners=True)[0]
    expected = (expected - mean[:, None, None]) / std[:, None, None]
    assert torch.allclose(twice.prepare(image, preprocessing), expected.float(), atol=1e-5)


def test_strict_bounds_leave_out_both_ends() -> None:
    depth_m = [1.0, 1.001, 5.0, 9.99, 10.0]
    assert scored([2.0] * 5, depth_m)[0].pixels == 5
    assert scored([2.0] * 5, depth_m, replace(METRES, bounds="strict"))[0].pixels == 3


def test_nan_is_near_and_infinity_far(tmp_path: Path) -> None:
    protocol = replace(METRES, not_finite="clip")
    (row,) = scored([np.nan, np.inf, -np.inf, 2.0], [2.0, 5.0, 2.0, 2.0], protocol)
    assert row.scores["abs_rel"] == pytest.approx((1 / 2 + 5 / 5 + 1 / 2 + 0) / 4)
    assert row.replaced == 3
    np.save(tmp_path / "a.npy", np.float32([[np.nan]]))
    predictor = FolderPredictor(tmp_path, QUANTITIES["depth"])
    image = np.zeros((1, 1, 3), np.uint8)
    assert predictor.for_protocol("m", protocol.model_input).prepare(image, "a")[0].isnan()
    with pytest.raises(ValueError, match="1 values are NaN or infinite"):
        predictor.for_protocol("m", METRES.model_input).prepare(image, "a")


def test_error_of_scale_alone_goes_with_the_scale() -> None:
    rows = scored([2.5, 5.0, 10.0], [2.0, 4.0, 8.0])
    report = scale_report(rows, METRES)
    assert report is not None
    assert report.error == pytest.approx(0.25)
    assert report.means["median"]["abs_rel"] == pytest.approx(0, abs=1e-6)
    assert report.median_scale == pytest.approx(0.8)
    assert "AbsRel is 0.2500 in metres, 0.0000 with the scale of each image corrected" in report.words()
    assert "100 % of the error is scale (for the median image, depth times 0.800 fits)" in report.words()


def test_error_of_a_shift_remains_with_the_scale() -> None:
    rows = scored([3.0, 5.0, 9.0], [2.0, 4.0, 8.0])
    report = scale_report(rows, METRES)
    assert report is not None
    scaled = np.mean([abs(0.8 * (each + 1) - each) / each for each in (2, 4, 8)])  # the median is 5, not 4
    assert report.means["median"]["abs_rel"] == pytest.approx(scaled)
    assert report.means["least_squares"]["abs_rel"] == pytest.approx(0, abs=1e-5)
    assert report.share_of_scale == pytest.approx(1 - scaled / report.error)


def test_fitted_scores_have_no_scale_report() -> None:
    protocol = replace(METRES, align="median")
    assert scale_report(scored([3.0, 5.0, 9.0], [2.0, 4.0, 8.0], protocol), protocol) is None


def test_constant_truth_has_no_aligned_score() -> None:
    (row,) = scored([3.0, 5.0], [2.0, 2.0])
    assert row.aligned == {} and row.scores["abs_rel"] == pytest.approx(1.0)
    assert scale_report([row], METRES) is None


def test_scale_report_compares_the_same_images() -> None:
    rows = scored([2.5, 5.0, 10.0], [2.0, 4.0, 8.0]) + scored([9.0, 9.0], [3.0, 3.0])
    report = scale_report(rows, METRES)
    assert report is not None
    assert report.error == pytest.approx(0.25), "the image of one distance would make it 1.125"
    assert report.left_out == 1
    assert report.words().endswith("; images left out, as their ground truth allows no alignment: 1")


def test_only_patterns_leave_out_metric_protocols() -> None:
    relative = Chosen(Protocol("r"), {}, {}, by_pattern=True)
    metric = Chosen(METRES, {}, {}, by_pattern=True)
    fit, unfit = leave_out_unfit([relative, metric], {"a": "disparity", "b": "depth"})
    assert fit == [relative]
    assert unfit["m"].startswith("a predicts disparity of unknown scale and shift")
    assert leave_out_unfit([relative, metric], {"b": "depth"}) == ([relative, metric], {})
    for chosen in ([relative, replace(metric, by_pattern=False)], [metric]):
        with pytest.raises(ValueError, match=r"align=none of protocol m takes metres.*or a metric model"):
            leave_out_unfit(chosen, {"a": "disparity"})
