"""Scores of metres after an alignment that they need not have: how much of an error is scale."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from depthany.metrics.align import Fit, fit, is_degenerate, to_depth_m
from depthany.metrics.table import METRICS, Sums, pixel_sums, score_values

WORDS = {  # method of alignment -> what it corrects in each image, for tables
    "median": "scale corrected",
    "least_squares": "scale and shift",
}


@dataclass(frozen=True)
class AlignedScore:
    """Scores and their sums, by metric, of one image whose metres `fitted` aligned to the ground truth."""

    scores: dict[str, float]
    sums: Sums
    fitted: Fit


def score_aligned(
    x: NDArray[np.float32],
    depth_m: NDArray[np.float32],
    metrics: Sequence[str],
    range_m: tuple[float, float],
) -> dict[str, AlignedScore]:
    """Returns the scores of metres after each alignment of WORDS; none where the ground truth says nothing.

    Args:
        x, depth_m: [n] predicted and true depth in m, n > 0. metrics: names; those over pixels count.
        range_m: range in m to which the aligned prediction is clipped.
    """
    found = dict[str, AlignedScore]()
    for method in WORDS:
        if not is_degenerate(method, depth_m):
            fitted = fit(method, x, depth_m)
            sums = pixel_sums(metrics, to_depth_m(x, fitted, "depth", range_m), depth_m)
            found[method] = AlignedScore(score_values(sums, metrics), sums, fitted)
    return found


@dataclass(frozen=True)
class ScaleReport:
    """The error of a set that remains after the depth of each image is aligned to the ground truth.

    Attributes:
        metric: name of an error in `METRICS`. error: its value as predicted.
        means: scores of the set, by method of WORDS.
        median_scale: median over images of the factor that makes the median depth the true one.
        left_out: how many images have a ground truth that allows no alignment; they count in neither the
            error nor the means.
    """

    metric: str
    error: float
    means: Mapping[str, Mapping[str, float]]
    median_scale: float
    left_out: int = 0

    @property
    def share_of_scale(self) -> float:
        """The share of the error, in 0..1, that goes away with the scale of each image corrected."""
        if self.error <= 0:
            return 0.0
        return min(1.0, max(0.0, 1 - self.means["median"][self.metric] / self.error))

    def words(self) -> str:
        """Returns the report in one sentence."""
        heading = METRICS[self.metric].heading
        scaled, fitted = (self.means[method][self.metric] for method in WORDS)
        share = f"{100 * self.share_of_scale:.0f} %" if self.share_of_scale else "none"
        return (
            f"{heading} is {self.error:.4f} in metres, {scaled:.4f} with the scale of each image "
            f"corrected, {fitted:.4f} with scale and shift fitted: {share} of the error is scale (for the "
            f"median image, depth times {self.median_scale:.3f} fits)" + self._words_left_out()
        )

    def _words_left_out(self) -> str:
        if not self.left_out:
            return ""
        return f"; images left out, as their ground truth allows no alignment: {self.left_out}"

    def to_json(self) -> dict[str, object]:
        """Returns plain values for results.json."""
        return {
            "means": {method: dict(scores) for method, scores in self.means.items()},
            "median_scale": self.median_scale,
            "error": self.metric,
            "share_of_error_that_is_scale": self.share_of_scale,
            "images_left_out": self.left_out,
            "in_words": self.words(),
        }
