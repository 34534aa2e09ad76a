"""The table of metrics: how each score is computed, which direction is better, and how it is shown.

A metric adds numbers up over an image, and a formula turns the sums into a score. Sums of several images
add, so the formula also scores all pixels of a set together. Add a metric from your own code by a row:

    METRICS["mae"] = Metric("MAE", "lower", lambda p, g: [len(g), np.abs(p - g).sum()])

and list it in a protocol, `metrics: [abs_rel, mae]`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from depthany.metrics import depth
from depthany.metrics.boundary import RECALL_THRESHOLDS, boundary_sums, edge_recall, edge_sums
from depthany.metrics.confusion import class_sums, mean_class_accuracy, mean_iou, pixel_accuracy
from depthany.metrics.depth import depth_sums, pixel_mean
from depthany.metrics.ordinal import pair_sums
from depthany.metrics.pieces import float64_pieces

Better = Literal["lower", "higher"]
Over = Literal["pixels", "maps", "pairs", "classes"]
Task = Literal["depth", "ordinal", "classes"]
Sums = dict[str, NDArray[np.float64]]  # of one image, by metric


def mean_of_sums(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns total / count [...] from sums [... 2] = (count, total)."""
    return sums[..., 1] / sums[..., 0]


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    Args:
        heading: heading of its column, such as AbsRel.
        better: whether a lower or a higher score is better.
        sums: numbers of one image, an array of one fixed shape [*s], such as [2] = (count, total) or a
            confusion matrix [k k]. Metrics that name the same function share one call of it. What it takes
            depends on `over`:
            pixels: (depth_pred_m [n], depth_m [n]) in m, float64, both above 0, valid pixels only. It is
                called on pieces of an image, so the sum over pieces must be the sum over the image.
            maps: (depth_pred_m [h w], depth_m [h w], known [h w] bool), once per image. Both depths are held
                to the range of the protocol; `depth_m` means nothing where `known` is False. None if the
                metric is not defined for this image.
            pairs: (nearness [h w], pairs of points (row, column), the nearer one first).
            classes: (confusion matrix [k k] of true and predicted classes,).
        score: the final formula, from sums [... *s] to scores [...]. Sums have leading axes when many
            resamples are scored at once, so index from the end: sums[..., 1] / sums[..., 0], the default.
        over: what the numbers are added over.
        task: which protocols can list the metric.
        brief: whether it has a column in narrow tables, on the terminal. Files and reports have all.

    Raises:
        ValueError: `better`, `over` or `task` is not one of its choices.
    """

    heading: str
    better: Better
    sums: Callable[..., ArrayLike | None]
    score: Callable[[NDArray[np.float64]], NDArray[np.float64]] = mean_of_sums
    over: Over = "pixels"
    task: Task = "depth"
    brief: bool = True

    def __post_init__(self) -> None:
        for key, choices in (("better", Better), ("over", Over), ("task", Task)):
            if getattr(self, key) not in get_args(choices):
                raise ValueError(
                    f"metric {self.heading}: unknown {key} {getattr(self, key)!r}; choose from "
                    f"{', '.join(get_args(choices))}"
                )

    def is_better(self, score: float, best: float | None) -> bool:
        """Returns whether a finite score is better than the best so far; None: there is none yet."""
        if best is None or not np.isfinite(score):
            return bool(np.isfinite(score))
        return score < best if self.better == "lower" else score > best


METRICS: dict[str, Metric] = {
    "abs_rel": Metric("AbsRel", "lower", depth_sums, partial(pixel_mean, place=depth.RELATIVE)),
    "delta1": Metric("delta1", "higher", depth_sums, partial(pixel_mean, place=depth.DELTA1)),
    "delta2": Metric("delta2", "higher", depth_sums, partial(pixel_mean, place=depth.DELTA2), brief=False),
    "delta3": Metric("delta3", "higher", depth_sums, partial(pixel_mean, place=depth.DELTA3), brief=False),
    "sq_rel": Metric(
        "SqRel", "lower", depth_sums, partial(pixel_mean, place=depth.SQUARED_RELATIVE), brief=False
    ),
    "rmse": Metric("RMSE", "lower", depth_sums, depth.rmse),
    "rmse_log": Metric("RMSElog", "lower", depth_sums, depth.rmse_log, brief=False),
    "log10": Metric("log10", "lower", depth_sums, depth.log10),
    "silog": Metric("SILog", "lower", depth_sums, depth.silog),
    "boundary_f1": Metric("bound. F1", "higher", boundary_sums, over="maps"),
    **{  # share of the edges at which depth changes by more than 5, 10 or 25 %
        f"edge_recall_{round(100 * (ratio - 1))}": Metric(
            f"edges {round(100 * (ratio - 1))} %",
            "higher",
            edge_sums,
            partial(edge_recall, place=i),
            over="maps",
            brief=False,
        )
        for i, ratio in enumerate(RECALL_THRESHOLDS)
    },
    "accuracy": Metric("accuracy", "higher", pair_sums, over="pairs", task="ordinal"),
    "miou": Metric("mIoU", "higher", class_sums, mean_iou, over="classes", task="classes"),
    "pixel_accuracy": Metric(
        "pixel acc.", "higher", class_sums, pixel_accuracy, over="classes", task="classes"
    ),
    "class_accuracy": Metric(
        "class acc.", "higher", class_sums, mean_class_accuracy, over="classes", task="classes"
    ),
}

# What a protocol scores that lists no metrics, by task. The first one decides best and worst images.
DEFAULT_METRICS: dict[str, tuple[str, ...]] = {
    "depth": ("abs_rel", "delta1", "delta2", "delta3", "sq_rel", "rmse", "rmse_log", "log10", "silog"),
    "ordinal": ("accuracy",),
    "classes": ("miou", "pixel_accuracy", "class_accuracy"),
}


def require_metrics(names: Sequence[str], task: str, who: str) -> None:
    """Raises a `ValueError` unless every name is a metric of the task, listed once."""
    choices = [name for name, metric in METRICS.items() if metric.task == task]
    for name in names:
        if name not in choices:
            raise ValueError(
                f"{who}: unknown metric {name!r} of task {task}; choose from {', '.join(choices)}"
            )
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{who}: metrics={list(names)}; expected one or more, each once")


def brief(names: Iterable[str]) -> list[str]:
    """Returns the names of metrics that narrow tables show, in the same order; all if none is marked."""
    names = list(names)
    return [name for name in names if METRICS[name].brief] or names


def pixel_sums(names: Sequence[str], depth_pred_m: NDArray, depth_m: NDArray) -> Sums:
    """Returns the sums of the listed metrics over the pixels of an image, in one pass over them.

    Args:
        names: names of metrics; those that are not over pixels are left out.
        depth_pred_m, depth_m: [n] predicted and true depth in m, both above 0, valid pixels only; n > 0.

    Raises:
        ValueError: the arrays differ in shape, are not [n], or are empty.
    """
    if depth_pred_m.shape != depth_m.shape or depth_m.ndim != 1:
        raise ValueError(
            f"prediction is {depth_pred_m.shape}, ground truth {depth_m.shape}; expected one shape [n]"
        )
    if not len(depth_m):
        raise ValueError("an image without a valid pixel has no score: leave it out, and report it")
    functions, totals = _functions(names, "pixels"), dict[Any, NDArray[np.float64]]()
    for p, g in float64_pieces(depth_pred_m, depth_m):
        for function in functions:
            piece = np.asarray(function(p, g), np.float64)
            totals[function] = totals[function] + piece if function in totals else piece
    return _by_name(names, "pixels", totals)


def image_sums(names: Sequence[str], over: Over, *data: Any) -> Sums:
    """Returns the sums of the listed metrics over whole maps, or over point pairs, of an image.

    A metric that is not defined for this image has no entry.

    Args:
        names: names of metrics; those that are not over `over` are left out.
        over: maps or pairs.
        data: what the function of such a metric takes; see `Metric`.
    """
    found = {function: function(*data) for function in _functions(names, over)}
    return _by_name(
        names, over, {f: np.asarray(sums, np.float64) for f, sums in found.items() if sums is not None}
    )


def scores_of(sums: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    """Returns the score [...] of each metric from its sums [... *s], of one image or added over several."""
    return {name: METRICS[name].score(array) for name, array in sums.items()}


def score_values(sums: Mapping[str, NDArray[np.float64]], names: Sequence[str]) -> dict[str, float]:
    """Returns the scores of an image, from its `sums` [] by name, in the order of `names`, without NaN."""
    scores = {name: float(score) for name, score in scores_of(sums).items()}
    return {name: scores[name] for name in names if not np.isnan(scores.get(name, np.nan))}


def _functions(names: Sequence[str], over: Over) -> list[Callable[..., Any]]:
    """Returns the distinct `sums` functions of the metrics over pixels, maps or pairs."""
    return list(dict.fromkeys(METRICS[name].sums for name in names if METRICS[name].over == over))


def _by_name(names: Sequence[str], over: Over, arrays: Mapping[Any, NDArray[np.float64]]) -> Sums:
    chosen = [name for name in names if METRICS[name].over == over and METRICS[name].sums in arrays]
    return {name: arrays[METRICS[name].sums] for name in chosen}
