"""How well a depth map keeps the edges of things: the boundary F1 of Depth Pro.

Source: Bochkovskii et al. 2024 (arXiv 2410.02073), section 4 and eval/boundary_metrics.py of its code. MoGe
uses the same name for another score, with a mask and discs of pixels; the two do not compare.
"""

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = np.linspace(1.05, 1.25, 10)
WEIGHTS = THRESHOLDS / THRESHOLDS.sum()
_MIN_DEPTH = 1e-6  # before inversion, as in the code of Depth Pro


def boundary_sums(depth_pred_m: NDArray, depth_m: NDArray, known: NDArray[np.bool_]) -> list[float] | None:
    """Returns [1, boundary F1] of an image, None where the truth has a hole, since a hole would be an edge.

    Args:
        depth_pred_m, depth_m: [h w] predicted and true depth in m, finite.
        known: [h w] True where the true depth is known.
    """
    return [1.0, boundary_f1(depth_pred_m, depth_m)] if known.all() else None


def boundary_f1(depth_pred_m: NDArray, depth_m: NDArray) -> float:
    """Returns the F1 in 0..1 between the occluding edges of prediction and truth.

    A pixel is in front of a neighbour if its inverse depth is more than t times the neighbour's. Precision
    and recall of that relation are averaged over the four directions, and their F1 over thresholds t with
    weights proportional to t. Only ratios of depth count, so the scale of the prediction does not matter.
    There is no thinning of edges and no mask.

    Args:
        depth_pred_m, depth_m: [h w] predicted and true depth in m (or any common unit), finite.

    Raises:
        ValueError: the maps differ in shape or are not [h w].
    """
    if depth_pred_m.shape != depth_m.shape or depth_m.ndim != 2:
        raise ValueError(
            f"prediction is {depth_pred_m.shape}, truth {depth_m.shape}; expected one shape [h w] for both"
        )
    predicted, true = (_ratios(1.0 / np.maximum(map_m, _MIN_DEPTH)) for map_m in (depth_pred_m, depth_m))
    return float(sum(w * _f1(predicted, true, t) for t, w in zip(THRESHOLDS, WEIGHTS)))


def _ratios(inverse: NDArray) -> list[NDArray]:
    """Returns inverse depth over that of the neighbour to the left, right, above and below."""
    left, right, upper, lower = inverse[:, :-1], inverse[:, 1:], inverse[:-1], inverse[1:]
    return [right / left, left / right, lower / upper, upper / lower]


def _f1(predicted: list[NDArray], true: list[NDArray], threshold: float) -> float:
    precision = recall = 0.0
    for p, g in zip(predicted, true):
        predicted_edges, true_edges = p > threshold, g > threshold
        hits = int(np.count_nonzero(predicted_edges & true_edges))
        precision += hits / max(int(np.count_nonzero(predicted_edges)), 1) / 4
        recall += hits / max(int(np.count_nonzero(true_edges)), 1) / 4
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
