"""A histogram of depth whose memory does not grow with the number of pixels."""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

# The upper bits of a positive float32 (8 of the exponent, 10 of the mantissa) sort like the number itself: a
# logarithmic histogram without a logarithm. A bin is at most 0.1 % wide, and every power of two is an edge.
_DROPPED_BITS = 13
_BINS = 1 << (31 - _DROPPED_BITS)


@dataclass
class DepthHistogram:
    """Counts of numbers of 0 or more, such as metres or disparity, with their exact smallest and largest.

    counts: [bins] int64. Histograms of parts add up to the histogram of the whole, in any order.
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, np.int64))
    low: float = math.inf
    high: float = -math.inf

    def add(self, values: NDArray[np.float32]) -> None:
        """Counts values [n] float32; each must be finite and 0 or more."""
        if values.size:
            low, high = values.min(), values.max()
            bins = values.view(np.uint32) >> _DROPPED_BITS
            bins &= _BINS - 1  # -0.0 is 0
            first = int(np.float32(low).view(np.uint32) >> _DROPPED_BITS) & (_BINS - 1)
            found = np.bincount(np.subtract(bins, first, dtype=np.intp, casting="unsafe"))
            self.counts[first : first + len(found)] += found
            self.low, self.high = min(self.low, abs(float(low))), max(self.high, float(high))

    def packed(self) -> "PackedHistogram":
        """Returns only the bins that are not empty, which are few, to send them between processes."""
        bins = np.flatnonzero(self.counts)
        return PackedHistogram(bins, self.counts[bins], self.low, self.high)

    def merge(self, part: "PackedHistogram") -> None:
        """Adds the counts of another histogram."""
        self.counts[part.bins] += part.counts
        self.low, self.high = min(self.low, part.low), max(self.high, part.high)

    @property
    def total(self) -> int:
        """How many numbers were counted."""
        return int(self.counts.sum())

    def percentile(self, percent: float) -> float:
        """Returns the smallest number that at least `percent` of the numbers do not exceed, accurate to
        0.05 %; NaN if nothing was counted.
        """
        total = self.total
        if not total:
            return math.nan
        rank = max(1, math.ceil(round(total * percent / 100, 6)))
        reached = int(np.searchsorted(np.cumsum(self.counts), rank))
        edges = np.array([reached, reached + 1], np.uint32) << _DROPPED_BITS
        middle = float(edges.view(np.float32).astype(np.float64).mean())
        return min(max(middle, self.low), self.high) if reached else 0.0

    def share_below(self, limit: float) -> float:
        """Returns the share of numbers below a limit (0 or more), without those within 0.1 % of the limit."""
        return float(self.counts[: _bin(limit)].sum() / max(self.total, 1))

    def share_above(self, limit: float) -> float:
        """Returns the share of numbers above a limit (0 or more), without those within 0.1 % of the limit."""
        return float(self.counts[_bin(limit) + 1 :].sum() / max(self.total, 1))

    def share_of_largest(self) -> float:
        """Returns the share of the numbers within 0.1 % of the largest; 0 if nothing was counted."""
        return float(self.counts[_bin(self.high)] / self.total) if self.total else 0.0

    def octaves(self) -> list[tuple[float, float, int]]:
        """Returns counts between neighbouring powers of two as (from, to, count), from the smallest number
        above 0 to the largest. Numbers below 1e-38 count as 0.
        """
        per_octave = self.counts.reshape(256, -1).sum(1)  # exponent e of a float stands for 2 ** (e - 127)
        per_octave[0] = 0
        filled = np.flatnonzero(per_octave)
        span = range(filled[0], filled[-1] + 1) if len(filled) else range(0)
        return [(2.0 ** (e - 127), 2.0 ** (e - 126), int(per_octave[e])) for e in span]

    @property
    def zeros(self) -> int:
        """How many numbers are 0, which is infinitely far in a set of disparity."""
        return int(self.counts[: _BINS // 256].sum())


def _bin(number: float) -> int:
    return int(np.float32(number).view(np.uint32) >> _DROPPED_BITS)


@dataclass(frozen=True)
class PackedHistogram:
    """Counts [k] of the bins [k] that are not empty."""

    bins: NDArray[np.int64]
    counts: NDArray[np.int64]
    low: float
    high: float
