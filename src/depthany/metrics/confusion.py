"""Scores of predicted classes, all from one confusion matrix.

The matrix [k k] counts pixels: rows are true classes, columns predicted ones; pixels to ignore are left out
first. With TP the diagonal, FN the rest of a row and FP the rest of a column,

    IoU of a class   TP / (TP + FP + FN)             pixel accuracy   sum of TP / all pixels
    mIoU             mean IoU over the classes       class accuracy   mean of TP / (TP + FN)

Rule for absent classes: a class that neither occurs in the ground truth nor is predicted anywhere in the set
has no IoU (0 / 0) and is left out of the mean, as in mmsegmentation and DINOv3's code. Code that counts it as
0 reports less. Legend: `k` classes, `n` pixels.
"""

import numpy as np
from numpy.typing import NDArray

ABSENT_RULE = "mean over the classes that occur in ground truth or prediction of the set; others are left out"
CORRECT, TRUE, PREDICTED = range(3)  # rows of the sums of classes [3 k]


def confusion_matrix(labels: NDArray, predicted: NDArray, classes: int) -> NDArray[np.int64]:
    """Returns the confusion matrix [k k]: pixels by true (row) and predicted (column) class.

    Args:
        labels, predicted: [n] class numbers, 0 to k - 1; pixels to ignore are left out.

    Raises:
        ValueError: a number is not below `classes`.
    """
    for what, numbers in (("a label", labels), ("a prediction", predicted)):
        if numbers.size and int(numbers.max()) >= classes:
            raise ValueError(f"{what} is class {int(numbers.max())}, but there are {classes} classes, from 0")
    pairs = labels.astype(np.int64) * classes + predicted
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def class_sums(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns sums [3 k] of a confusion matrix [k k]: the correct, true and predicted pixels of each class.

    Sums of several images add, as their matrices do.
    """
    return np.stack([np.diagonal(confusion), confusion.sum(1), confusion.sum(0)]).astype(np.float64)


def class_iou(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the IoU of each class [... k] from sums [... 3 k]; NaN for an absent class."""
    union = sums[..., TRUE, :] + sums[..., PREDICTED, :] - sums[..., CORRECT, :]
    return _ratio(sums[..., CORRECT, :], union)


def class_accuracy(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns which share of each class's pixels is right [... k] from sums [... 3 k]; NaN without pixels."""
    return _ratio(sums[..., CORRECT, :], sums[..., TRUE, :])


def mean_iou(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns mIoU [...] from sums [... 3 k]; see `ABSENT_RULE`."""
    return _mean(class_iou(sums))


def mean_class_accuracy(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the mean over the classes in ground truth of `class_accuracy` [...], from sums [... 3 k]."""
    return _mean(class_accuracy(sums))


def pixel_accuracy(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the share of pixels [...] whose class is right, from sums [... 3 k]."""
    return _ratio(sums[..., CORRECT, :].sum(-1), sums[..., TRUE, :].sum(-1))


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the mean [...] over the last axis without NaN; NaN if all are."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0).sum(-1), known.sum(-1))


def _ratio(numerator: NDArray, denominator: NDArray) -> NDArray[np.float64]:
    """Returns the ratio, NaN where the denominator is 0."""
    positive = denominator > 0
    ratio: NDArray[np.float64] = np.where(positive, numerator / np.where(positive, denominator, 1), np.nan)
    return ratio
