"""Confidence intervals of a score, or of a difference of two, by resampling the images."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

RESAMPLES, SEED, LEVEL = 10_000, 0, 0.95
_CELLS = 4_000_000  # largest number of counts in memory at a time

Statistic = Callable[[NDArray[np.float64]], Mapping[str, NDArray[np.float64]]]


def intervals(
    statistic: Statistic, images: int, resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, tuple[float, float]]:
    """Returns percentile intervals of 95 % by name (Efron and Tibshirani 1993, section 13.3).

    Equal arguments return equal intervals. Two checkpoints are compared by the interval of their
    *difference* under the same draws (paired), since a hard image is hard for both and that cancels.

    Args:
        statistic: maps counts [r images], how often each image is in each resample, to values [r] by name.
        images: number of images.
        resamples: number of resamples.
        seed: seed of the draws.
    """
    draw, rows = np.random.default_rng(seed), max(1, _CELLS // images)
    parts: list[Mapping[str, NDArray[np.float64]]] = []
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        picked = draw.integers(images, size=(size, images)) + images * np.arange(size)[:, None]  # [r images]
        counts = np.bincount(picked.ravel(), minlength=size * images).reshape(size, images)  # [r images]
        parts.append(statistic(counts.astype(np.float64)))
    ends: dict[str, tuple[float, float]] = {}
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts])  # [resamples]
        low, high = np.nanpercentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
        ends[name] = float(low), float(high)
    return ends
