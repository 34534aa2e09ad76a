"""Scores of a depth map in metres against the truth, of one image or pooled over the pixels of many.

A score is a function of a few sums over pixels. The sums of several images add, so all pixels can be pooled
without being kept.
"""

import numpy as np
from numpy.typing import NDArray

# The names of `scores_of`, in the order they are reported. Lower is better but for delta1 to delta3.
METRICS = ("abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog", "delta1", "delta2", "delta3")
SUMS = 10  # numbers in the vector of `pixel_sums`
_CHUNK = 1 << 15  # pixels whose float64 intermediates stay in the cache: a third of the time of one go


def pixel_sums(depth_pred_m: NDArray, depth_m: NDArray) -> NDArray[np.float64]:
    """The sums over pixels that all scores are made of, in float64.

    Args:
        depth_pred_m, depth_m: [n] predicted and true depth in m, both above 0, valid pixels only.

    Returns:
        [SUMS]: n, then with p the prediction, g the truth, d = ln p - ln g the sums of |p - g| / g,
        (p - g)² / g, (p - g)², d², d, |d|, and the counts of max(p/g, g/p) < 1.25, 1.25², 1.25³.
    """
    if depth_pred_m.shape != depth_m.shape or depth_m.ndim != 1:
        raise ValueError(
            f"prediction is {depth_pred_m.shape}, truth {depth_m.shape}; expected one shape [n] for both"
        )
    total = np.zeros(SUMS)
    for start in range(0, len(depth_m), _CHUNK):
        p = depth_pred_m[start : start + _CHUNK].astype(np.float64)
        g = depth_m[start : start + _CHUNK].astype(np.float64)
        total += _sums(p, g)
    return total


def _sums(p: NDArray[np.float64], g: NDArray[np.float64]) -> list[float]:
    error, ratio = p - g, p / g
    d = np.log(ratio)
    relative = np.abs(error) / g
    ratio = np.maximum(ratio, g / p)
    return [
        len(g),
        relative.sum(),
        relative @ np.abs(error),
        error @ error,
        d @ d,
        d.sum(),
        np.abs(d).sum(),
        *(np.count_nonzero(ratio < 1.25**i) for i in (1, 2, 3)),
    ]


def scores_of(sums: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """The usual scores of monocular depth (Eigen et al. 2014, arXiv 1406.2283; SILog as in Marigold).

    With p the prediction, g the truth, d = ln p - ln g, means over the valid pixels:

        abs_rel   mean |p - g| / g                  log10     mean |log10 p - log10 g|
        sq_rel    mean (p - g)² / g, in m           silog     100 · sqrt(mean d² - (mean d)²)
        rmse      sqrt(mean (p - g)²), in m         delta_i   share of pixels with max(p/g, g/p) < 1.25^i
        rmse_log  sqrt(mean d²)

    Two names have other definitions elsewhere: KITTI's own sq_rel divides by g², and Depth Anything V2's
    silog halves (mean d)² and has no factor 100.

    Args:
        sums: [... SUMS] from `pixel_sums`, of one image or added over several; at least one pixel each.

    Returns:
        Each of METRICS as [...] float64.
    """
    if not (sums[..., 0] > 0).all():
        raise ValueError("an image without a valid pixel has no score: leave it out, and say so")
    abs_rel, sq_rel, squared, d2, d, d_abs, *deltas = np.moveaxis(sums[..., 1:] / sums[..., :1], -1, 0)
    scores = {
        "abs_rel": abs_rel,
        "sq_rel": sq_rel,
        "rmse": np.sqrt(squared),
        "rmse_log": np.sqrt(d2),
        "log10": d_abs / np.log(10),
        "silog": 100 * np.sqrt(np.maximum(d2 - d * d, 0)),  # rounding may fall below 0
    }
    return scores | {f"delta{i}": share for i, share in enumerate(deltas, 1)}


def depth_metrics(depth_pred_m: NDArray, depth_m: NDArray) -> dict[str, float]:
    """Each of METRICS for one set of pixels; see `pixel_sums` and `scores_of`."""
    return {name: float(value) for name, value in scores_of(pixel_sums(depth_pred_m, depth_m)).items()}
