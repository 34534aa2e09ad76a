"""Which of two points is nearer: the score of DA-2K (Yang et al. 2024, arXiv 2406.09414, section 6)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Point = tuple[int, int]  # row, column


def pair_sums(nearness: NDArray, pairs: Sequence[tuple[Point, Point]]) -> NDArray[np.float64]:
    """Counts the point pairs that a prediction puts in the right order; equal values are wrong.

    Args:
        nearness: [h w] at the size of the image, larger is nearer: disparity, or depth with its sign changed.
        pairs: the nearer point, then the farther one.

    Returns:
        [2]: the number of pairs, and how many of them are right.

    Raises:
        ValueError: a point lies outside of the map.
    """
    points = np.asarray(pairs, dtype=np.int64).reshape(-1, 2, 2)  # pair, nearer or farther, row or column
    height, width = nearness.shape
    if len(points) and ((points < 0).any() or (points >= (height, width)).any()):
        raise ValueError(
            f"a point lies outside of the image of {width}x{height}: rows and columns reach from "
            f"{points.min(axis=(0, 1)).tolist()} to {points.max(axis=(0, 1)).tolist()}"
        )
    nearer, farther = (nearness[points[:, i, 0], points[:, i, 1]] for i in (0, 1))
    return np.array([len(points), np.count_nonzero(nearer > farther)], dtype=np.float64)
