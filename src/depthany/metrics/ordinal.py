"""Which of two points is nearer: the score of DA-2K (Yang et al. 2024, arXiv 2406.09414, section 6)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Point = tuple[int, int]  # row, column


def right_pairs(prediction: NDArray, pairs: Sequence[tuple[Point, Point]], larger_is_nearer: bool) -> int:
    """How many pairs the prediction has in the right order; equal values are wrong.

    Args:
        prediction: [h w] at the size of the image: disparity, or depth.
        pairs: the nearer point, then the farther one.
        larger_is_nearer: True for disparity, False for depth.

    Raises:
        ValueError: a point lies outside of the map.
    """
    points = np.asarray(pairs, dtype=np.int64).reshape(-1, 2, 2)  # pair, nearer or farther, row or column
    height, width = prediction.shape
    if len(points) and ((points < 0).any() or (points >= (height, width)).any()):
        raise ValueError(
            f"a point lies outside of the image of {width}x{height}: rows and columns reach from "
            f"{points.min(axis=(0, 1)).tolist()} to {points.max(axis=(0, 1)).tolist()}"
        )
    nearer, farther = (prediction[points[:, i, 0], points[:, i, 1]] for i in (0, 1))
    return int(np.count_nonzero(nearer > farther if larger_is_nearer else nearer < farther))
