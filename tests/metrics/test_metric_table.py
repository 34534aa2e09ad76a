"""The table of metrics: directions, shared sums, metrics of one's own."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from depthany.metrics.table import (
    DEFAULT_METRICS,
    METRICS,
    Metric,
    brief,
    image_sums,
    pixel_sums,
    require_metrics,
    scores_of,
)


def confusion(predicted: NDArray, true: NDArray) -> NDArray[np.float64]:
    """[2 2] counts, rows = truth, columns = prediction, of values below and above 2."""
    return np.bincount(2 * (true > 2) + (predicted > 2), minlength=4).reshape(2, 2).astype(np.float64)


def mean_iou(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    hits = np.diagonal(sums, axis1=-2, axis2=-1)
    return (hits / (sums.sum(-1) + sums.sum(-2) - hits)).mean(-1)


def test_direction_decides_which_score_is_better() -> None:
    assert METRICS["abs_rel"].is_better(0.1, 0.2)
    assert not METRICS["abs_rel"].is_better(0.2, 0.2)
    assert METRICS["delta1"].is_better(0.2, 0.1)
    for metric in METRICS.values():
        assert metric.is_better(0.5, None)
        assert not any(
            metric.is_better(score, best) for score in (math.nan, math.inf) for best in (None, 0.5)
        )


def test_unknown_choices_of_a_row_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown better 'smaller'; choose from lower, higher"):
        Metric("X", "smaller", confusion)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown over 'images'; choose from pixels, maps, pairs"):
        Metric("X", "lower", confusion, over="images")  # type: ignore[arg-type]


def test_own_pixel_metric_is_added_over_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []

    def absolute(p: NDArray, g: NDArray) -> list[float]:
        lengths.append(len(p))
        return [len(p), np.abs(p - g).sum()]

    monkeypatch.setitem(METRICS, "mae", Metric("MAE", "lower", absolute))
    monkeypatch.setitem(
        METRICS, "mae_cm", Metric("MAE cm", "lower", absolute, lambda s: 100 * s[..., 1] / s[..., 0])
    )
    g = np.full(100_000, 2.0, np.float32)
    scores = scores_of(pixel_sums(["mae", "mae_cm", "abs_rel"], g + 0.5, g))
    assert {name: float(value) for name, value in scores.items()} == {
        "mae": 0.5,
        "mae_cm": 50.0,
        "abs_rel": 0.25,
    }
    assert sum(lengths) == 100_000  # one call per piece, though two metrics name the function
    assert len(lengths) > 1


def test_sums_may_be_a_confusion_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "miou", Metric("mIoU", "higher", confusion, mean_iou))
    sums = pixel_sums(["miou"], np.array([1.0, 1, 3, 3]), np.array([1.0, 3, 3, 3]))["miou"]
    assert sums.tolist() == [[1, 0], [1, 2]]
    assert float(METRICS["miou"].score(sums)) == pytest.approx((1 / 2 + 2 / 3) / 2)
    both = np.stack([sums, 10 * sums + [[0, 10], [0, 0]]])
    # [[10, 10], [10, 20]]: 10 / 30 and 20 / 40
    assert METRICS["miou"].score(both) == pytest.approx([7 / 12, 5 / 12])


def test_map_metric_may_be_undefined_for_an_image() -> None:
    depth_m = np.repeat([[1.0, 1.0, 3.0, 3.0]], 3, axis=0)
    known = np.ones(depth_m.shape, bool)
    names = ["abs_rel", "boundary_f1"]
    assert list(image_sums(names, "maps", depth_m, depth_m, known)) == ["boundary_f1"]
    known[0, 0] = False
    assert image_sums(names, "maps", depth_m, depth_m, known) == {}


def test_metrics_of_another_task_are_refused() -> None:
    for task, names in DEFAULT_METRICS.items():
        require_metrics(names, task, "p")
    with pytest.raises(
        ValueError, match=r"p: unknown metric 'accuracy' of task depth; choose from abs_rel, "
    ):
        require_metrics(["abs_rel", "accuracy"], "depth", "p")
    with pytest.raises(ValueError, match="expected one or more, each once"):
        require_metrics(["abs_rel", "abs_rel"], "depth", "p")


def test_brief_keeps_order_and_is_never_empty() -> None:
    assert brief(["silog", "delta2", "abs_rel"]) == ["silog", "abs_rel"]
    assert brief(["delta2"]) == ["delta2"]
