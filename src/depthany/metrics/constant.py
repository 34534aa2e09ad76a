"""Maps that say nothing about their image."""

import numpy as np
from numpy.typing import NDArray

ROUNDING = 1e-6  # relative rounding error of a constant that was resized in float32


def is_constant(values: NDArray[np.float32]) -> bool:
    """Whether the values, of any shape, are all equal up to rounding; False for a single one."""
    low, high = float(values.min()), float(values.max())
    return values.size > 1 and high - low <= ROUNDING * max(abs(low), abs(high))
