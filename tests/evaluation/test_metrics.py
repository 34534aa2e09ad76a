"""The scores against values worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from depthany.evaluation.metrics import METRICS, depth_metrics


def row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[None, None]


def test_scores_of_four_pixels_by_hand():
    # p = 2 2 6 8, g = 1 2 4 8: p - g = 1 0 2 0; (p - g)/g = 1 0 1/2 0; (p - g)²/g = 1 0 1 0
    # d = ln 2, 0, ln 1.5, 0; ratios 2 1 1.5 1 against 1.25, 1.5625, 1.953125
    p, g = row(2, 2, 6, 8), row(1, 2, 4, 8)
    scores = depth_metrics(p, g, g > 0)
    ln2, ln15 = math.log(2), math.log(1.5)
    mean_d, mean_d2 = (ln2 + ln15) / 4, (ln2**2 + ln15**2) / 4
    expected = {
        "abs_rel": 1.5 / 4,
        "sq_rel": 2 / 4,
        "rmse": math.sqrt(5 / 4),
        "rmse_log": math.sqrt(mean_d2),
        "log10": (math.log10(2) + math.log10(1.5)) / 4,
        "silog": 100 * math.sqrt(mean_d2 - mean_d**2),
        "delta1": 2 / 4,
        "delta2": 3 / 4,
        "delta3": 3 / 4,
    }
    assert tuple(expected) == METRICS
    assert {name: scores[name].item() for name in METRICS} == pytest.approx(expected, rel=1e-12)
    assert scores["pixels"].item() == 4


def test_a_perfect_prediction_scores_zero_error_and_full_accuracy():
    g = row(0.5, 3, 80, 7)
    scores = depth_metrics(g, g, g > 0)
    for name in METRICS:
        assert scores[name].item() == (1 if name.startswith("delta") else 0)


def test_silog_ignores_a_common_factor_and_no_other_score_does():
    g = row(1, 2, 4, 8)
    scores = depth_metrics(3 * g, g, g > 0)
    assert scores["silog"].item() == pytest.approx(0, abs=1e-5)
    assert scores["abs_rel"].item() == pytest.approx(2)
    assert scores["delta3"].item() == 0


def test_delta_counts_too_near_as_much_as_too_far_and_excludes_the_threshold():
    g = row(1, 1, 1, 1)
    scores = depth_metrics(row(1.25, 0.8, 1.24, 0.81), g, g > 0)
    assert scores["delta1"].item() == 2 / 4
    assert scores["delta2"].item() == 1


def test_images_are_scored_on_their_own_valid_pixels():
    p = torch.cat([row(2, 2, 6, 8), row(1, 1, 1, 9)])
    g = torch.cat([row(1, 2, math.nan, 0), row(math.inf, 2, 4, -1)])
    mask = torch.tensor([[[True, True, False, False]], [[False, True, True, False]]])
    scores = depth_metrics(p, g, mask)
    assert scores["abs_rel"].tolist() == pytest.approx([(1 + 0) / 2, (1 / 2 + 3 / 4) / 2])
    assert scores["pixels"].tolist() == [2, 2]
    assert all(scores[name].isfinite().all() for name in METRICS)


def test_an_image_without_valid_pixels_is_told_by_its_count_and_is_not_nan():
    p, g = torch.ones(2, 3, 3), torch.ones(2, 3, 3)
    mask = g > 0
    mask[0] = False
    scores = depth_metrics(p, g, mask)
    assert scores["pixels"].tolist() == [0, 9]
    assert all(scores[name][0] == 0 for name in METRICS)


def test_float32_maps_are_scored_in_float64():
    scores = depth_metrics(torch.ones(1, 2, 2), torch.ones(1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool))
    assert all(scores[name].dtype == torch.float64 for name in METRICS)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"truth \(1, 2, 3\)"):
        depth_metrics(torch.ones(1, 2, 2), torch.ones(1, 2, 3), torch.ones(1, 2, 2, dtype=torch.bool))
