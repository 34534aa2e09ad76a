"""Scores of a depth map in metres against the truth, per image."""

import torch
from torch import Tensor

# The names of `depth_metrics`, in the order they are reported. Lower is better but for delta1 to delta3.
METRICS = ("abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog", "delta1", "delta2", "delta3")


def depth_metrics(depth_pred_m: Tensor, depth_m: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The usual scores of monocular depth (Eigen et al. 2014, arXiv 1406.2283; SILog as in Marigold).

    With p the prediction, g the truth, d = ln p - ln g, means over the valid pixels of one image:

        abs_rel   mean |p - g| / g                  log10     mean |log10 p - log10 g|
        sq_rel    mean (p - g)² / g, in m           silog     100 · sqrt(mean d² - (mean d)²)
        rmse      sqrt(mean (p - g)²), in m         delta_i   share of pixels with max(p/g, g/p) < 1.25^i
        rmse_log  sqrt(mean d²)

    Two names have other definitions elsewhere: KITTI's own sq_rel divides by g², and Depth Anything V2's
    silog halves (mean d)² and has no factor 100.

    Args:
        depth_pred_m: [b h w] predicted depth in m, positive where valid.
        depth_m: [b h w] true depth in m, positive where valid; anything, even NaN, off the mask.
        mask: [b h w] bool, True where the truth is known and counts.

    Returns:
        Each of METRICS as [b] float64, and `pixels` [b] int64, the number of valid pixels. An image with none
        has scores of 0, not NaN: the caller must leave it out by its `pixels` and say so.
    """
    if not depth_pred_m.shape == depth_m.shape == mask.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"prediction is {tuple(depth_pred_m.shape)}, truth {tuple(depth_m.shape)}, mask "
            f"{tuple(mask.shape)} {mask.dtype}; expected one shape [b h w] for all three and a bool mask"
        )
    mask = mask.flatten(1)  # [b n]
    p = torch.where(mask, depth_pred_m.flatten(1).double(), 1)
    g = torch.where(mask, depth_m.flatten(1).double(), 1)
    pixels = mask.sum(1)

    def mean(values: Tensor) -> Tensor:  # [b n] -> [b]
        return torch.where(mask, values, 0).sum(1) / pixels.clamp(min=1)

    error, d = p - g, p.log() - g.log()
    ratio = torch.maximum(p / g, g / p)
    mean_d, mean_d2 = mean(d), mean(d.square())
    scores = {
        "abs_rel": mean(error.abs() / g),
        "sq_rel": mean(error.square() / g),
        "rmse": mean(error.square()).sqrt(),
        "rmse_log": mean_d2.sqrt(),
        "log10": mean((p.log10() - g.log10()).abs()),
        "silog": 100 * (mean_d2 - mean_d.square()).clamp(min=0).sqrt(),  # rounding may fall below 0
    }
    for i in (1, 2, 3):
        scores[f"delta{i}"] = mean((ratio < 1.25**i).double())
    return {**scores, "pixels": pixels}
