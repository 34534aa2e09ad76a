"""Long arrays in pieces, so that float64 intermediates stay in the processor's cache."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

PIECE = 1 << 15  # values; a third of the time of one pass over the whole array


def float64_pieces(
    first: NDArray, second: NDArray
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Yields pieces of at most PIECE values of two arrays, in order, in float64.

    Args:
        first, second: [n] of any type.
    """
    for start in range(0, len(first), PIECE):
        piece = slice(start, start + PIECE)
        yield first[piece].astype(np.float64), second[piece].astype(np.float64)
