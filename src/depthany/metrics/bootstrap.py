"""How far a score, or a difference of two, could be off because there are only so many images."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

RESAMPLES, SEED, LEVEL = 10_000, 0, 0.95
_CELLS = 4_000_000  # counts in memory at a time

Statistic = Callable[[NDArray[np.float64]], Mapping[str, NDArray[np.float64]]]


def intervals(
    statistic: Statistic, images: int, resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of 95 % by resampling the images (Efron and Tibshirani 1993, section 13.3).

    Two checkpoints are compared by the interval of the *difference* under the same draws (paired): images
    are hard or easy for both, and that cancels.

    Args:
        statistic: values [r] by name from counts [r images]: how often each image is in each resample.
        images: how many there are.

    Returns:
        Lower and upper end by name; the same for equal arguments.
    """
    draw, rows = np.random.default_rng(seed), max(1, _CELLS // images)
    parts: list[Mapping[str, NDArray[np.float64]]] = []
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        picked = draw.integers(images, size=(size, images)) + images * np.arange(size)[:, None]
        counts = np.bincount(picked.ravel(), minlength=size * images).reshape(size, images)
        parts.append(statistic(counts.astype(np.float64)))
    ends: dict[str, tuple[float, float]] = {}
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts])
        low, high = np.nanpercentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
        ends[name] = float(low), float(high)
    return ends
