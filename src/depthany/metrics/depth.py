"""Scores of a predicted depth in metres against the true one.

With p the prediction, g the ground truth, d = ln p - ln g, means over the valid pixels (Eigen et al. 2014,
arXiv 1406.2283; SILog as in Marigold):

    abs_rel   mean |p - g| / g                  log10     mean |log10 p - log10 g|
    sq_rel    mean (p - g)² / g, in m           silog     100 · sqrt(mean d² - (mean d)²)
    rmse      sqrt(mean (p - g)²), in m         delta_i   share of pixels with max(p/g, g/p) < 1.25^i
    rmse_log  sqrt(mean d²)

Two names have other definitions elsewhere: KITTI's own sq_rel divides by g², and Depth Anything V2's silog
halves (mean d)² and has no factor 100.

All of them are functions of the same ten sums. The sums of several images add, so the pixels of a whole set
can be pooled without keeping them.
"""

import numpy as np
from numpy.typing import NDArray

# Places in the vector that `depth_sums` returns.
PIXELS, RELATIVE, SQUARED_RELATIVE, SQUARED, LOG_SQUARED, LOG, LOG_ABSOLUTE, DELTA1, DELTA2, DELTA3 = range(
    10
)


def depth_sums(depth_pred_m: NDArray[np.float64], depth_m: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the sums over pixels that all scores of this module need.

    Args:
        depth_pred_m, depth_m: [n] predicted and true depth in m, both above 0.

    Returns:
        [10]: the number of pixels, then the sums of |p - g| / g, (p - g)² / g, (p - g)², d², d, |d|, and the
        numbers of pixels with max(p/g, g/p) < 1.25, 1.25², 1.25³.
    """
    error, ratio = depth_pred_m - depth_m, depth_pred_m / depth_m
    d = np.log(ratio)
    relative = np.abs(error) / depth_m
    ratio = np.maximum(ratio, depth_m / depth_pred_m)
    return np.array(
        [
            len(depth_m),
            relative.sum(),
            relative @ np.abs(error),
            error @ error,
            d @ d,
            d.sum(),
            np.abs(d).sum(),
            *(np.count_nonzero(ratio < 1.25**i) for i in (1, 2, 3)),
        ]
    )


def pixel_mean(sums: NDArray[np.float64], place: int) -> NDArray[np.float64]:
    """Returns the mean over pixels [...] of one of the sums [... 10]."""
    return sums[..., place] / sums[..., PIXELS]


def rmse(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns sqrt(mean (p - g)²) [...] in m from sums [... 10]."""
    return np.sqrt(pixel_mean(sums, SQUARED))


def rmse_log(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns sqrt(mean d²) [...] from sums [... 10]."""
    return np.sqrt(pixel_mean(sums, LOG_SQUARED))


def log10(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns mean |log10 p - log10 g| [...] from sums [... 10]."""
    return pixel_mean(sums, LOG_ABSOLUTE) / np.log(10)


def silog(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns 100 · sqrt(mean d² - (mean d)²) [...] from sums [... 10]."""
    mean_d = pixel_mean(sums, LOG)
    variance = pixel_mean(sums, LOG_SQUARED) - mean_d * mean_d
    return 100 * np.sqrt(np.maximum(variance, 0))  # rounding may fall below 0
