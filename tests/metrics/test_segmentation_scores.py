"""mIoU from one confusion matrix: by hand, and the rule for absent classes."""

import numpy as np
import pytest

from depthany.metrics.confusion import (
    class_iou,
    class_sums,
    confusion_matrix,
    mean_class_accuracy,
    mean_iou,
    pixel_accuracy,
)

LABELS, PREDICTED = np.array([0, 0, 0, 1, 1, 3]), np.array([0, 0, 1, 1, 1, 1])


def test_confusion_matrix_has_truth_in_rows() -> None:
    expected = [[2, 1, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert confusion_matrix(LABELS, PREDICTED, 4).tolist() == expected
    assert confusion_matrix(LABELS, PREDICTED, 4).dtype == np.int64


def test_scores_by_hand() -> None:
    sums = class_sums(confusion_matrix(LABELS, PREDICTED, 4))
    assert class_iou(sums)[[0, 1, 3]].tolist() == pytest.approx([2 / 3, 2 / 4, 0])
    assert pixel_accuracy(sums) == pytest.approx(4 / 6)
    assert mean_class_accuracy(sums) == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_absent_class_is_left_out_of_the_mean() -> None:
    sums = class_sums(confusion_matrix(LABELS, PREDICTED, 4))
    assert np.isnan(class_iou(sums)[2])
    assert mean_iou(sums) == pytest.approx((2 / 3 + 2 / 4 + 0) / 3), "not a quarter of the sum"


def test_class_that_is_only_predicted_counts_as_0() -> None:
    sums = class_sums(confusion_matrix(np.array([0, 0]), np.array([0, 1]), 3))
    assert mean_iou(sums) == pytest.approx((1 / 2 + 0) / 2)


def test_number_beyond_the_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="a prediction is class 4, but there are 4 classes"):
        confusion_matrix(np.array([0]), np.array([4]), 4)


def test_scores_of_many_resamples_at_once() -> None:
    one = class_sums(confusion_matrix(LABELS, PREDICTED, 4))
    many = np.stack([one, 2 * one, np.zeros_like(one)])
    assert mean_iou(many)[:2].tolist() == pytest.approx([float(mean_iou(one))] * 2)
    assert np.isnan(mean_iou(many)[2])
