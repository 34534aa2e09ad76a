"""How well a depth map keeps the edges of things: the boundary F1 of Depth Pro.

Source: Bochkovskii et al. 2024 (arXiv 2410.02073), section 4 and eval/boundary_metrics.py of its code. MoGe
scores another thing under the same name, with a mask and discs of pixels; the two do not compare.
"""

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = np.linspace(1.05, 1.25, 10)
WEIGHTS = THRESHOLDS / THRESHOLDS.sum()
_LEAST_DEPTH = 1e-6  # as the code of Depth Pro inverts


def boundary_f1(depth_pred_m: NDArray, depth_m: NDArray) -> float:
    """F1 in 0..1 between the occluding edges of prediction and truth; no scale matters, only ratios.

    A pixel is in front of a neighbour if its inverse depth is more than t times the neighbour's. Precision
    and recall of that are counted in each of four directions and averaged, their F1 is averaged over
    thresholds t with weights in proportion to t. Nothing is thinned and nothing masked: the truth must be
    known everywhere.

    Args:
        depth_pred_m, depth_m: [h w] depth in m (any common unit), finite.
    """
    if depth_pred_m.shape != depth_m.shape or depth_m.ndim != 2:
        raise ValueError(
            f"prediction is {depth_pred_m.shape}, truth {depth_m.shape}; expected one shape [h w] for both"
        )
    predicted, true = (_ratios(1.0 / np.maximum(each, _LEAST_DEPTH)) for each in (depth_pred_m, depth_m))
    return float(sum(w * _f1(predicted, true, t) for t, w in zip(THRESHOLDS, WEIGHTS)))


def _ratios(inverse: NDArray) -> list[NDArray]:
    """Inverse depth over that of the neighbour to the left, right, above and below, where there is one."""
    left, right, upper, lower = inverse[:, :-1], inverse[:, 1:], inverse[:-1], inverse[1:]
    return [right / left, left / right, lower / upper, upper / lower]


def _f1(predicted: list[NDArray], true: list[NDArray], threshold: float) -> float:
    precision = recall = 0.0
    for p, g in zip(predicted, true):
        found, there = p > threshold, g > threshold
        both, all_found, all_there = (int(np.count_nonzero(each)) for each in (found & there, found, there))
        precision += both / max(all_found, 1) / 4
        recall += both / max(all_there, 1) / 4
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
