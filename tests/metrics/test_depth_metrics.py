"""The depth metrics against values worked out by hand, and against a plain reference on many pixels."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from depthany.metrics.table import DEFAULT_METRICS, pixel_sums, scores_of

NAMES = DEFAULT_METRICS["depth"]


def row(*values: float) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)


def scores(depth_pred_m: NDArray, depth_m: NDArray) -> dict[str, float]:
    return {name: float(score) for name, score in scores_of(pixel_sums(NAMES, depth_pred_m, depth_m)).items()}


def reference(p: NDArray, g: NDArray) -> dict[str, float]:
    """The formulas as they are written, all pixels at once in float64."""
    p, g = p.astype(np.float64), g.astype(np.float64)
    d, ratio = np.log(p) - np.log(g), np.maximum(p / g, g / p)
    return {
        "abs_rel": np.mean(np.abs(p - g) / g),
        "sq_rel": np.mean((p - g) ** 2 / g),
        "rmse": np.sqrt(np.mean((p - g) ** 2)),
        "rmse_log": np.sqrt(np.mean(d**2)),
        "log10": np.mean(np.abs(np.log10(p) - np.log10(g))),
        "silog": 100 * np.sqrt(np.mean(d**2) - np.mean(d) ** 2),
        **{f"delta{i}": np.mean(ratio < 1.25**i) for i in (1, 2, 3)},
    }


def test_scores_of_four_pixels_by_hand() -> None:
    # p = 2 2 6 8, g = 1 2 4 8: p - g = 1 0 2 0; (p - g)/g = 1 0 1/2 0; (p - g)²/g = 1 0 1 0
    # d = ln 2, 0, ln 1.5, 0; ratios 2 1 1.5 1 against 1.25, 1.5625, 1.953125
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
    assert scores(row(2, 2, 6, 8), row(1, 2, 4, 8)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("pixels", [1, 1000, 100_001])
def test_sums_in_pieces_equal_the_formulas(pixels: int) -> None:
    draw = np.random.default_rng(0)
    g = draw.uniform(0.5, 80, pixels).astype(np.float32)
    p = (g * draw.lognormal(0, 0.3, pixels)).astype(np.float32)
    assert scores(p, g) == pytest.approx(reference(p, g), rel=1e-9)


def test_added_sums_score_all_pixels_together() -> None:
    draw = np.random.default_rng(1)
    p, g = draw.uniform(1, 10, (2, 700))
    first, second = pixel_sums(NAMES, p[:100], g[:100]), pixel_sums(NAMES, p[100:], g[100:])
    pooled = scores_of({name: first[name] + second[name] for name in NAMES})
    assert {name: float(score) for name, score in pooled.items()} == pytest.approx(reference(p, g))
    # the mean over the two images is another number: a hundred pixels would weigh as much as six hundred
    per_image = [scores(p[part], g[part])["rmse"] for part in (slice(100), slice(100, None))]
    assert abs(np.mean(per_image) - reference(p, g)["rmse"]) > 1e-3


def test_perfect_prediction_has_no_error() -> None:
    g = row(0.5, 3, 80, 7)
    for name, value in scores(g, g).items():
        assert value == (1 if name.startswith("delta") else 0)


def test_only_silog_ignores_a_common_factor() -> None:
    g = row(1, 2, 4, 8)
    found = scores(3 * g, g)
    assert found["silog"] == pytest.approx(0, abs=1e-5)
    assert found["abs_rel"] == pytest.approx(2)
    assert found["delta3"] == 0


def test_delta_is_symmetric_and_excludes_its_threshold() -> None:
    found = scores(row(1.25, 0.8, 1.24, 0.81), row(1, 1, 1, 1))
    assert found["delta1"] == 2 / 4
    assert found["delta2"] == 1


def test_empty_and_unequal_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="without a valid pixel"):
        scores(row(), row())
    with pytest.raises(ValueError, match=r"truth \(3,\)"):
        scores(row(1, 2), row(1, 2, 3))
