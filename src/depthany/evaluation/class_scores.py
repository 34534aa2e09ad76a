"""Scores of predicted classes: the row of an image, and the table of the classes of a set."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depthany.data.targets import Labels
from depthany.evaluation.score import CountedPairs, Row
from depthany.metrics.confusion import (
    ABSENT_RULE,
    TRUE,
    class_accuracy,
    class_iou,
    class_sums,
    confusion_matrix,
)
from depthany.metrics.table import image_sums, score_values
from depthany.models.output import Quantity


def require_classes(quantity: Quantity, dataset: Any, who: str) -> None:
    """Raises ValueError unless a predictor predicts the classes of a set, in the same order.

    Args:
        dataset: data set with the attribute `classes`, a `ClassList`. who: the predictor, for the message.
    """
    wanted, given = tuple(dataset.classes.names), quantity.class_names
    if quantity.kind != "classes":
        raise ValueError(f"{who} predicts {quantity.describe()}, but the labels of this set are classes")
    if wanted != given:
        raise ValueError(
            f"{who} predicts {len(given)} classes ({_few(given)}), but the set has {len(wanted)} "
            f"({_few(wanted)}): the same classes in the same order are needed; ids of a classes file can map "
            "those of the set"
        )


def score_classes(
    predicted: NDArray[Any],
    labels: Labels,
    classes: int,
    metrics: Sequence[str],
    index: int = 0,
    name: str = "",
) -> Row | None:
    """Returns the scores of an image; None if no pixel has a label.

    Args:
        predicted: [h w] uint8 class numbers at the size of the labels.
        labels: labels of unit "class".
        classes: how many there are.
        metrics: names of metrics over classes.
        index, name: index and name of the image in its set.
    """
    valid = labels.valid
    if not valid.any():
        return None
    confusion = confusion_matrix(labels.values[valid], predicted[valid], classes)
    sums = image_sums(metrics, "classes", confusion)
    return Row(
        index,
        name,
        score_values(sums, metrics),
        sums,
        pixels=int(confusion.sum()),
        confusion=CountedPairs.of(confusion),
    )


def confusion_of(rows: Sequence[Row], classes: int) -> NDArray[np.int64]:
    """Returns the confusion matrix [k k] of all images: rows true, columns predicted."""
    total = np.zeros(classes * classes, np.int64)
    for row in rows:
        assert row.confusion is not None
        total[row.confusion.places] += row.confusion.pixels
    return total.reshape(classes, classes)


@dataclass(frozen=True)
class ClassScore:
    """The scores of one class of a set.

    iou, accuracy: None where they are not defined. share: share of the pixels that truly have this class.
    """

    name: str
    iou: float | None
    accuracy: float | None
    share: float


def class_table(confusion: NDArray[np.int64], names: Sequence[str]) -> list[ClassScore]:
    """Returns the scores of each class from the confusion matrix [k k], in the order of their numbers."""
    sums = class_sums(confusion)  # [3 k]
    columns = (class_iou(sums), class_accuracy(sums), sums[TRUE] / max(sums[TRUE].sum(), 1.0))
    return [
        ClassScore(
            name, None if np.isnan(iou) else float(iou), None if np.isnan(right) else float(right), float(n)
        )
        for name, iou, right, n in zip(names, *columns)
    ]


def classes_json(confusion: NDArray[np.int64], names: Sequence[str]) -> dict[str, Any]:
    """Returns what results.json says of classes: rule of mIoU, their scores, confusion matrix [k k]."""
    scores = [asdict(each) for each in class_table(confusion, names)]
    return {"rule": f"mIoU: {ABSENT_RULE}", "classes": scores, "confusion": confusion.tolist()}


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
