"""Depth counted in bins: percentiles, octaves and sums of parts."""

import math

import numpy as np
import pytest

from depthany.data.histogram import DepthHistogram


def test_percentiles_are_close_to_numpys() -> None:
    values = np.random.default_rng(0).lognormal(1.0, 2.0, 20_000).astype(np.float32)
    once, added = DepthHistogram(), DepthHistogram()
    once.add(values)
    for start in range(0, len(values), 3000):
        part = DepthHistogram()
        part.add(values[start : start + 3000])
        added.merge(part.packed())
    assert np.array_equal(once.counts, added.counts)
    assert (added.low, added.high) == (values.min(), values.max())
    for percent in (0, 1, 50, 93.75, 100):
        expected = np.percentile(values, percent, method="inverted_cdf")
        assert added.percentile(percent) == pytest.approx(expected, rel=1e-3)


def test_zeros_are_below_all_octaves() -> None:
    histogram = DepthHistogram()
    histogram.add(np.array([0.0, -0.0, 0.5, 0.75, 3.0], np.float32))
    assert histogram.zeros == 2
    assert histogram.octaves() == [(0.5, 1.0, 2), (1.0, 2.0, 0), (2.0, 4.0, 1)]
    assert (histogram.percentile(40), histogram.low, histogram.high) == (0.0, 0.0, 3.0)
    assert math.isnan(DepthHistogram().percentile(50))
