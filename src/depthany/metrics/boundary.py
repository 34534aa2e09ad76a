"""How well a depth map keeps the edges of things: the boundary F1 of Depth Pro, and the recall of edges.

Source: Bochkovskii et al. 2024 (arXiv 2410.02073), section 4 and eval/boundary_metrics.py of its code. MoGe
uses the same name for another score, with a mask and discs of pixels; the two do not compare.
"""

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = np.linspace(1.05, 1.25, 10)
WEIGHTS = THRESHOLDS / THRESHOLDS.sum()
RECALL_THRESHOLDS = (1.05, 1.1, 1.25)  # ratios of depth
_MIN_DEPTH = 1e-6  # before inversion, as in the code of Depth Pro


def boundary_sums(depth_pred_m: NDArray, depth_m: NDArray, known: NDArray[np.bool_]) -> list[float] | None:
    """Returns [1, boundary F1] of an image; None where the ground truth has a hole, which would be an edge.

    Args:
        depth_pred_m, depth_m: [h w] predicted and true depth in m, finite.
        known: [h w] True where the true depth is known.
    """
    return [1.0, boundary_f1(depth_pred_m, depth_m)] if known.all() else None


def boundary_f1(depth_pred_m: NDArray, depth_m: NDArray) -> float:
    """Returns the F1 in 0..1 between the occluding edges of prediction and ground truth.

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
            f"prediction is {depth_pred_m.shape}, ground truth {depth_m.shape}; expected one shape [h w]"
        )
    predicted, true = (_ratios(1.0 / np.maximum(map_m, _MIN_DEPTH)) for map_m in (depth_pred_m, depth_m))
    return float(sum(w * _f1(predicted, true, t) for t, w in zip(THRESHOLDS, WEIGHTS)))


def edge_sums(depth_pred_m: NDArray, depth_m: NDArray, known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Counts the true occluding edges of an image and those that the prediction has, too.

    An edge is a pair of neighbours, side by side or one below the other, one of which is more than t times as
    far away. The prediction has it if the same one is more than t times as far. Both pixels must be known, so
    ground truth may have holes.

    Args:
        depth_pred_m, depth_m: [h w] predicted and true depth in m, finite. known: [h w] bool.

    Returns:
        [t 2] for each of `RECALL_THRESHOLDS`: the number of edges, and how many are found.
    """
    counts = np.zeros((len(RECALL_THRESHOLDS), 2))
    maps = [np.log(np.maximum(each, _MIN_DEPTH)) for each in (depth_pred_m, depth_m)]
    for axis in (0, 1):
        predicted, true = (np.diff(each, axis=axis) for each in maps)
        both = np.logical_and(*(known[:-1], known[1:]) if axis == 0 else (known[:, :-1], known[:, 1:]))
        for i, threshold in enumerate(np.log(RECALL_THRESHOLDS)):
            edges = both & (np.abs(true) > threshold)
            counts[i, 0] += np.count_nonzero(edges)
            counts[i, 1] += np.count_nonzero(edges & (predicted * np.sign(true) > threshold))
    return counts


def edge_recall(sums: NDArray[np.float64], place: int) -> NDArray[np.float64]:
    """Returns the share [...] of true edges that are found at a threshold, from sums [... t 2]."""
    with np.errstate(invalid="ignore", divide="ignore"):  # an image without such an edge has no score
        found: NDArray[np.float64] = sums[..., place, 1] / sums[..., place, 0]
    return found


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
