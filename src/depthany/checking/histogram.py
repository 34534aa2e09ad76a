"""How often which depth occurs, in a memory that does not grow with the number of pixels."""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

# The upper bits of a float32 above 0 (8 of exponent, 10 of mantissa) sort as the number itself: a logarithmic
# histogram without a logarithm. A bin is 0.1 % wide or less, and every power of two is an edge.
_DROPPED_BITS = 13
_BINS = 1 << (31 - _DROPPED_BITS)


@dataclass
class DepthHistogram:
    """Counts of numbers from 0 up, such as metres or disparity, with their exact smallest and largest.

    counts: [bins] int64. Histograms of parts add up to that of the whole, in any order.
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, np.int64))
    low: float = math.inf
    high: float = -math.inf

    def add(self, values: NDArray[np.float32]) -> None:
        """Count values [n], each finite and 0 or more."""
        if values.size:
            low, high = values.min(), values.max()
            bins = values.view(np.uint32) >> _DROPPED_BITS
            bins &= _BINS - 1  # -0.0 is 0
            first = int(np.float32(low).view(np.uint32) >> _DROPPED_BITS) & (_BINS - 1)
            found = np.bincount(np.subtract(bins, first, dtype=np.intp, casting="unsafe"))
            self.counts[first : first + len(found)] += found
            self.low, self.high = min(self.low, abs(float(low))), max(self.high, float(high))

    def packed(self) -> "PackedHistogram":
        """Only the bins that hold something, for the way between processes."""
        bins = np.flatnonzero(self.counts)
        return PackedHistogram(bins, self.counts[bins], self.low, self.high)

    def merge(self, part: "PackedHistogram") -> None:
        """Add what another histogram counted."""
        self.counts[part.bins] += part.counts
        self.low, self.high = min(self.low, part.low), max(self.high, part.high)

    @property
    def total(self) -> int:
        """How many numbers were counted."""
        return int(self.counts.sum())

    def percentile(self, percent: float) -> float:
        """The smallest number that at least `percent` of the numbers do not exceed, to .05 %; NaN of none."""
        total = self.total
        if not total:
            return math.nan
        rank = max(1, math.ceil(round(total * percent / 100, 6)))
        reached = int(np.searchsorted(np.cumsum(self.counts), rank))
        edges = np.array([reached, reached + 1], np.uint32) << _DROPPED_BITS
        middle = float(edges.view(np.float32).astype(np.float64).mean())
        return min(max(middle, self.low), self.high) if reached else 0.0

    def octaves(self) -> list[tuple[float, float, int]]:
        """Counts between neighbouring powers of two as (from, to, count), from the smallest number above 0 to
        the largest; numbers below 1e-38 count as 0.
        """
        per_octave = self.counts.reshape(256, -1).sum(1)  # a float's exponent e stands for 2 ** (e - 127)
        per_octave[0] = 0
        filled = np.flatnonzero(per_octave)
        span = range(filled[0], filled[-1] + 1) if len(filled) else range(0)
        return [(2.0 ** (e - 127), 2.0 ** (e - 126), int(per_octave[e])) for e in span]

    @property
    def zeros(self) -> int:
        """How many numbers are 0: infinitely far in a set of disparity."""
        return int(self.counts[: _BINS // 256].sum())


@dataclass(frozen=True)
class PackedHistogram:
    """Counts [k] of the bins [k] that are not empty."""

    bins: NDArray[np.int64]
    counts: NDArray[np.int64]
    low: float
    high: float
