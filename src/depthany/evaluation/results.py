"""What came out, as numbers with their intervals, and as files."""

import csv
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depthany.evaluation.protocol import Protocol
from depthany.evaluation.run import Scored
from depthany.evaluation.score import Row, pooled
from depthany.metrics.bootstrap import LEVEL, RESAMPLES, SEED, Statistic, intervals
from depthany.system.files import write_atomically

NAMES_KEPT = 10  # of images that were left out, in messages; results.json has all


@dataclass
class ProtocolResult:
    """All that was scored under one protocol.

    Attributes:
        dataset: its settings, as plain values. changed: what the user set otherwise than the protocol.
        images: how many the set has. asked: how many of them were to be scored.
        scored: by label of the predictor, in the order of the command.
    """

    protocol: Protocol
    dataset: Mapping[str, Any]
    changed: Mapping[str, Any]
    images: int
    asked: int
    scored: dict[str, Scored] = field(default_factory=dict)
    _kept: dict[Hashable, Any] = field(default_factory=dict)  # what was computed of finished predictors

    def mean(self, label: str) -> dict[str, float]:
        """`summary` of a finished predictor, {} if it has no row."""
        rows = self.scored[label].rows
        return self._once(("mean", label), lambda: summary(rows, self.protocol) if rows else {})

    def intervals(self, label: str) -> dict[str, tuple[float, float]]:
        """`uncertainty` of a finished predictor, {} if it has no row."""
        rows = self.scored[label].rows
        return self._once(("intervals", label), lambda: uncertainty(rows, self.protocol) if rows else {})

    def differences(self) -> dict[str, "Difference"]:
        """Each later predictor minus the first, by "later - first", of those that share images with it."""
        return self._once(("differences", *self.scored), self._differences)

    def _differences(self) -> dict[str, "Difference"]:
        labels, found = list(self.scored), dict[str, Difference]()
        for label in labels[1:]:
            rows, others = self.scored[label].rows, self.scored[labels[0]].rows
            if rows and others and (each := difference(rows, others, self.protocol)):
                found[f"{label} - {labels[0]}"] = each
        return found

    def _once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]

    def is_partial(self, label: str) -> bool:
        """Whether images of the set do not count in the score of this predictor."""
        return len(self.scored[label].rows) < self.images

    def notes(self, label: str) -> list[str]:
        """What is unusual about a score, a line each."""
        scored, rows = self.scored[label], self.scored[label].rows
        lines = []
        if self.asked < self.images:
            lines.append(f"partial: {self.asked} of {self.images} images (limit={self.asked})")
        for names, what in (
            (scored.missing, "without prediction"),
            (scored.unreadable, "unreadable"),
            (scored.empty, "without anything that counts"),
        ):
            if names:
                more = ", ..." if len(names) > NAMES_KEPT else ""
                lines.append(f"{len(names)} {what}, left out: {', '.join(names[:NAMES_KEPT])}{more}")
        holes = sum(not row.extra for row in rows)
        if self.protocol.boundary_f1 and holes:
            lines.append(f"no boundary F1 for {holes} of {len(rows)} images: their truth has holes")
        if constant := [row.name for row in rows if is_constant(row)]:
            lines.append(
                f"{len(constant)} with a constant prediction, which cannot be aligned and was scored as the "
                f"constant that fits best: {', '.join(constant[:NAMES_KEPT])}"
            )
        if negative := [row.name for row in rows if is_negative(row)]:
            lines.append(
                f"{len(negative)} fitted with a negative scale (near and far exchanged), scored as fitted: "
                f"{', '.join(negative[:NAMES_KEPT])}"
            )
        return lines


def is_constant(row: Row) -> bool:
    """Whether the prediction was constant where the truth counts."""
    return row.fitted is not None and not row.fitted.solvable


def is_negative(row: Row) -> bool:
    """Whether the fit turned near and far around."""
    return row.fitted is not None and row.fitted.scale < 0


def statistic(rows: Sequence[Row], protocol: Protocol) -> Statistic:
    """Scores by name [r] as a function of counts [r images]: how often each image is taken."""
    extras = sorted({name for row in rows for name in row.extra})  # not every image need have them
    scores = np.array([list(row.scores.values()) for row in rows])  # [images k]
    more = np.array([[row.extra.get(name, np.nan) for name in extras] for row in rows])  # [images e]
    there = ~np.isnan(more)
    sums = np.stack([row.sums for row in rows])  # [images s]
    pools = protocol.averaging == "pixel" or protocol.task == "ordinal"

    def of(counts: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        means = dict(zip(rows[0].scores, (counts @ scores / counts.sum(1, keepdims=True)).T))
        if pools:
            means = pooled(counts @ sums, protocol.task)
        with np.errstate(invalid="ignore"):  # a resample may miss all images that have it
            return means | dict(zip(extras, (counts @ np.where(there, more, 0) / (counts @ there)).T))

    return of


def summary(rows: Sequence[Row], protocol: Protocol) -> dict[str, float]:
    """The scores of a set by name; of pairs also those of each scene, as `accuracy/<scene>`."""
    found = {
        name: float(value[0]) for name, value in statistic(rows, protocol)(np.ones((1, len(rows)))).items()
    }
    for scene in sorted({row.scene for row in rows} - {""}):
        of_scene = [row for row in rows if row.scene == scene]
        found[f"accuracy/{scene}"] = summary([_without_scene(row) for row in of_scene], protocol)["accuracy"]
    return found


def _without_scene(row: Row) -> Row:
    return Row(row.index, row.name, row.scores, row.sums)


def uncertainty(rows: Sequence[Row], protocol: Protocol) -> dict[str, tuple[float, float]]:
    """95 % intervals of the scores of `summary`, but for those of scenes."""
    return intervals(statistic(rows, protocol), len(rows))


@dataclass(frozen=True)
class Difference:
    """One predictor minus another on the images that both have: by name the difference and its interval."""

    images: int
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]


def difference(rows: Sequence[Row], others: Sequence[Row], protocol: Protocol) -> Difference | None:
    """`rows` minus `others`, paired image by image; None where they share no image."""
    by_index = {row.index: row for row in others}
    mine = [row for row in rows if row.index in by_index]
    if not mine:
        return None
    first, second = statistic(mine, protocol), statistic([by_index[row.index] for row in mine], protocol)

    def of(counts: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        a, b = first(counts), second(counts)
        return {name: a[name] - b[name] for name in a}

    values = {name: float(value[0]) for name, value in of(np.ones((1, len(mine)))).items()}
    return Difference(len(mine), values, intervals(of, len(mine)))


def as_json(result: ProtocolResult) -> dict[str, Any]:
    """A protocol's results with all its settings and where they come from."""
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
    scored, rows = result.scored[label], result.scored[label].rows
    return {
        "partial": result.is_partial(label),
        "images": len(rows),
        "mean": result.mean(label),
        "interval_95": result.intervals(label),
        "constant_predictions": sum(is_constant(row) for row in rows),
        "negative_scales": sum(is_negative(row) for row in rows),
        "without_prediction": scored.missing,
        "unreadable": scored.unreadable,
        "nothing_counted": scored.empty,
    }


def write_results(out: Path, about: Mapping[str, Any], results: Sequence[ProtocolResult]) -> None:
    """Write results.json: what was run, and the results of each protocol."""
    bootstrap = {"resamples": RESAMPLES, "seed": SEED, "level": LEVEL, "unit": "image"}
    content = {
        **about,
        "bootstrap": bootstrap,
        "protocols": {each.protocol.name: as_json(each) for each in results},
    }
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_atomically(out / "results.json", lambda path: path.write_text(text))


def write_per_image(out: Path, results: Sequence[ProtocolResult]) -> None:
    """Write per_image.csv: a line for each protocol, checkpoint and image, full precision."""
    rows = [
        (result.protocol.name, label, row)
        for result in results
        for label, scored in result.scored.items()
        for row in scored.rows
    ]
    names = list(dict.fromkeys(key for _, _, row in rows for key in (*row.scores, *row.extra)))
    fixed = ["protocol", "checkpoint", "image", "scene", "pixels", "scale", "shift", "constant"]

    def fill(path: Path) -> None:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fixed + names, restval="")
            writer.writeheader()
            for protocol_name, label, row in rows:
                writer.writerow(
                    {"protocol": protocol_name, "checkpoint": label, "image": row.name, "scene": row.scene}
                    | ({} if row.scene else {"pixels": row.pixels})
                    | _fit_columns(row)
                    | row.scores
                    | row.extra
                )

    write_atomically(out / "per_image.csv", fill)


def _fit_columns(row: Row) -> dict[str, Any]:
    if row.fitted is None:
        return {}
    return {"scale": row.fitted.scale, "shift": row.fitted.shift, "constant": int(is_constant(row))}
