"""Results of an evaluation: means with their intervals, differences, and the files."""

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depthany.evaluation.after_alignment import WORDS, ScaleReport
from depthany.evaluation.class_scores import ClassScore, class_table, classes_json, confusion_of
from depthany.evaluation.fit_problems import FitProblems, shown
from depthany.evaluation.protocol import Protocol
from depthany.evaluation.run import Scored
from depthany.evaluation.score import Row
from depthany.metrics.bootstrap import LEVEL, RESAMPLES, SEED, Statistic, intervals
from depthany.metrics.table import METRICS, scores_of
from depthany.system.files import write_atomically

UNDEFINED = {"boundary_f1": "their ground truth has holes"}  # why an image lacks a metric, where it is known
RESULTS_FILE = "results.json"


@dataclass
class ProtocolResult:
    """All that was scored under one protocol.

    Attributes:
        dataset: its settings, as plain values. changed: settings of the protocol that the user changed.
        images: how many the set has. asked: how many of them were to be scored.
        scored: by label of the predictor, in the order of the command.
        class_names: class names of the set, if its labels are classes.
    """

    protocol: Protocol
    dataset: Mapping[str, Any]
    changed: Mapping[str, Any]
    images: int
    asked: int
    scored: dict[str, Scored] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    _cache: dict[Hashable, Any] = field(default_factory=dict)  # results of finished predictors

    def mean(self, label: str) -> dict[str, float]:
        """Returns `summary` of a finished predictor, {} if it has no row."""
        rows = self.scored[label].rows
        return self._once(("mean", label), lambda: summary(rows, self.protocol) if rows else {})

    def intervals(self, label: str) -> dict[str, tuple[float, float]]:
        """Returns `uncertainty` of a finished predictor, {} if it has no row."""
        rows = self.scored[label].rows
        return self._once(("intervals", label), lambda: uncertainty(rows, self.protocol) if rows else {})

    def confusion(self, label: str) -> NDArray[np.int64]:
        """Returns the confusion matrix [k k] of a finished predictor: rows true, columns predicted."""
        rows, classes = self.scored[label].rows, len(self.class_names)
        return self._once(("confusion", label), lambda: confusion_of(rows, classes))

    def class_table(self, label: str) -> list[ClassScore]:
        """Returns the scores of each class, [] where labels are not classes."""
        return class_table(self.confusion(label), self.class_names) if self.class_names else []

    def scale_report(self, label: str) -> ScaleReport | None:
        """Returns how much of the error of metres is scale; None if no alignment tells it."""
        return self._once(("scale", label), lambda: scale_report(self.scored[label].rows, self.protocol))

    def differences(self) -> dict[str, "Difference"]:
        """Returns each later predictor minus the first, by "later - first", where they share images."""
        return self._once(("differences", *self.scored), self._differences)

    def _differences(self) -> dict[str, "Difference"]:
        labels, found = list(self.scored), dict[str, Difference]()
        for label in labels[1:]:
            rows, others = self.scored[label].rows, self.scored[labels[0]].rows
            if rows and others and (each := difference(rows, others, self.protocol)):
                found[f"{label} - {labels[0]}"] = each
        return found

    def _once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        if key not in self._cache:
            self._cache[key] = compute()
        return self._cache[key]

    def is_partial(self, label: str) -> bool:
        """Returns whether images of the set do not count in the score of this predictor."""
        return len(self.scored[label].rows) < self.images

    def fit_problems(self, label: str) -> FitProblems:
        """Returns the images of a predictor with a negative scale or a constant prediction."""
        return FitProblems.of(self.scored[label].rows)

    def notes(self, label: str) -> list[str]:
        """Returns what is unusual about a score, one line each."""
        scored, lines = self.scored[label], list[str]()
        if self.asked < self.images:
            lines.append(f"partial: {self.asked} of {self.images} images (limit={self.asked})")
        for names, what in (
            (scored.missing, "without prediction"),
            (scored.unreadable, "unreadable"),
            (scored.empty, "without anything that counts"),
            (scored.degenerate, "with a constant ground truth or too few pixels for a fit"),
        ):
            if names:
                lines.append(f"{len(names)} {what}, left out: {shown(names)}")
        if replaced := [row for row in scored.rows if row.replaced]:
            pixels = sum(row.replaced for row in replaced)
            lines.append(
                f"{pixels} pixels of {len(replaced)} images are NaN or infinite, scored as the nearest and "
                f"the farthest depth of the range: {shown([row.name for row in replaced])}"
            )
        for metric in self.protocol.metrics:
            if undefined := sum(metric not in row.scores for row in scored.rows):
                why = UNDEFINED.get(metric, "it is not defined there")
                lines.append(f"no {metric} for {undefined} of {len(scored.rows)} images: {why}")
        return lines + self.fit_problems(label).notes()


def statistic(rows: Sequence[Row], protocol: Protocol) -> Statistic:
    """Returns the function from counts [r images], how often each image is taken, to scores [r] by metric.

    A metric that no image has is left out.
    """
    names = [name for name in protocol.metrics if any(name in row.scores for row in rows)]
    is_pooled = protocol.averaging == "pixel"
    pooled = [name for name in names if is_pooled or METRICS[name].over in ("pairs", "classes")]
    averaged = [name for name in names if name not in pooled]
    scores = np.array([[row.scores.get(name, np.nan) for name in averaged] for row in rows])  # [images k]
    defined = (~np.isnan(scores)).astype(np.float64)
    scores = np.nan_to_num(scores, nan=0.0, posinf=np.inf, neginf=-np.inf)
    stacked = _stacked_sums(rows, pooled)

    def of(counts: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        with np.errstate(invalid="ignore", divide="ignore"):  # a resample may miss all images that have it
            means = dict(zip(averaged, (counts @ scores / (counts @ defined)).T))
            added = {key: np.tensordot(counts, sums, 1) for key, sums in stacked.items()}
            together = scores_of({name: added[METRICS[name].sums] for name in pooled})
        for name, values in together.items():
            _require_one_score_each(name, values, len(counts))
        return {name: (means | together)[name] for name in names}

    return of


def _stacked_sums(rows: Sequence[Row], names: Sequence[str]) -> dict[Any, NDArray[np.float64]]:
    """Returns sums [images *s] by the function that made them, 0 where an image has none."""
    stacked = dict[Any, NDArray[np.float64]]()
    for name in names:
        shape = next(row.sums[name].shape for row in rows if name in row.sums)
        if METRICS[name].sums not in stacked:
            arrays = [row.sums.get(name, np.zeros(shape)) for row in rows]
            stacked[METRICS[name].sums] = np.stack(arrays)
    return stacked


def _require_one_score_each(name: str, values: NDArray[np.float64], resamples: int) -> None:
    if values.shape != (resamples,):
        raise ValueError(
            f"metric {name}: its score of {resamples} sums has the shape {values.shape}, expected "
            f"({resamples},): index sums from the end, such as sums[..., 1] / sums[..., 0]"
        )


def summary(rows: Sequence[Row], protocol: Protocol) -> dict[str, float]:
    """Returns the scores of a set by metric; of pairs also by kind of scene, as `<metric>/<scene>`."""
    found = {
        name: float(value[0]) for name, value in statistic(rows, protocol)(np.ones((1, len(rows)))).items()
    }
    for scene in sorted({row.scene for row in rows} - {""}):
        of_scene = [replace(row, scene="") for row in rows if row.scene == scene]
        found |= {f"{name}/{scene}": value for name, value in summary(of_scene, protocol).items()}
    return found


def scale_report(rows: Sequence[Row], protocol: Protocol) -> ScaleReport | None:
    """Returns what an alignment would leave of the error; None if no image has one, or no error is listed.

    Images whose ground truth allows no alignment (see `metrics.align.is_degenerate`) count in neither the
    error nor the means.
    """
    errors = [name for name in protocol.metrics if METRICS[name].better == "lower"]
    scored = len(rows)
    rows = [row for row in rows if row.aligned.keys() == WORDS.keys()]
    if not rows:
        return None
    means = dict[str, dict[str, float]]()
    for method in WORDS:
        found = [(row, row.aligned[method]) for row in rows]
        aligned = [replace(row, scores=each.scores, sums=each.sums) for row, each in found]
        means[method] = summary(aligned, protocol)
    own = summary(rows, protocol)
    metric = next((name for name in errors if name in own and name in means["median"]), None)
    if metric is None:
        return None
    scales = [row.aligned["median"].fitted.scale for row in rows]
    return ScaleReport(metric, own[metric], means, float(np.median(scales)), scored - len(rows))


def uncertainty(rows: Sequence[Row], protocol: Protocol) -> dict[str, tuple[float, float]]:
    """Returns 95 % intervals of the scores of `summary`, without those of scenes."""
    return intervals(statistic(rows, protocol), len(rows))


@dataclass(frozen=True)
class Difference:
    """One predictor minus another on the images that both have: differences and their intervals by metric."""

    images: int
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]


def difference(rows: Sequence[Row], others: Sequence[Row], protocol: Protocol) -> Difference | None:
    """Returns `rows` minus `others`, paired image by image; None if they share no image."""
    by_index = {row.index: row for row in others}
    mine = [row for row in rows if row.index in by_index]
    if not mine:
        return None
    first, second = statistic(mine, protocol), statistic([by_index[row.index] for row in mine], protocol)

    def of(counts: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        a, b = first(counts), second(counts)
        return {name: a[name] - b[name] for name in a if name in b}

    values = {name: float(value[0]) for name, value in of(np.ones((1, len(mine)))).items()}
    return Difference(len(mine), values, intervals(of, len(mine)))


def as_json(result: ProtocolResult) -> dict[str, Any]:
    """Returns the results of a protocol with all its settings and where they come from."""
    settings = {key: value for key, value in asdict(result.protocol).items() if key != "name"}
    return {
        "dataset": result.dataset,
        "settings": settings,
        "changed_by_the_user": dict(result.changed),
        "images_in_set": result.images,
        "images_asked_for": result.asked,
        "scores": {label: _scored_json(result, label) for label in result.scored},
        "differences": {name: asdict(each) for name, each in result.differences().items()},
    }


def _scored_json(result: ProtocolResult, label: str) -> dict[str, Any]:
    scored, problems = result.scored[label], result.fit_problems(label)
    report = result.scale_report(label)
    return {
        "partial": result.is_partial(label),
        "images": len(scored.rows),
        "mean": result.mean(label),
        "interval_95": result.intervals(label),
        "constant_predictions": len(problems.constant),
        "negative_scales": len(problems.negative),
        "warnings": problems.warnings(),
        "not_finite_pixels": sum(row.replaced for row in scored.rows),
        **({} if report is None else {"after_alignment": report.to_json()}),
        "without_prediction": scored.missing,
        "unreadable": scored.unreadable,
        "nothing_counted": scored.empty,
        "degenerate_truth": scored.degenerate,
        **(classes_json(result.confusion(label), result.class_names) if result.class_names else {}),
    }


def write_results(out: Path, about: Mapping[str, Any], results: Sequence[ProtocolResult]) -> None:
    """Writes results.json: what was run, and the results of each protocol."""
    bootstrap = {"resamples": RESAMPLES, "seed": SEED, "level": LEVEL, "unit": "image"}
    content = {
        **about,
        "bootstrap": bootstrap,
        "protocols": {result.protocol.name: as_json(result) for result in results},
    }
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_atomically(out / RESULTS_FILE, lambda path: path.write_text(text))
