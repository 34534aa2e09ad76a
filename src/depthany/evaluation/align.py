"""From a prediction of unknown scale and shift to metres, the way Depth Anything is evaluated."""

import torch
from torch import Tensor


def align_least_squares(prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale and shift per image that bring a prediction nearest to the truth in disparity, in closed form.

    Minimises Σ (scale·prediction + shift - target)² over valid pixels. Source: Ranftl et al. 2020
    (arXiv 1907.01341); that Depth Anything's output is affine in disparity, not in depth, is its authors'
    word. Solved about the means in float64: the sums of squares of a map of 10⁵ pixels cancel in float32.

    Args:
        prediction: [b h w] disparity of any scale and shift.
        target: [b h w] disparity, 1/m; anything, even NaN, off the mask.
        mask: [b h w] bool, True where the truth is known.

    Returns:
        scale, shift: [b] float64; and solvable: [b] bool, False where the mask is empty (scale and shift are
        0) or the prediction is constant on it (scale is 0, shift the mean of the target). No NaN for a finite
        prediction. A negative scale, from a prediction that takes near for far, is returned as it is.
    """
    if not prediction.shape == target.shape == mask.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"prediction is {tuple(prediction.shape)}, target {tuple(target.shape)}, mask "
            f"{tuple(mask.shape)} {mask.dtype}; expected one shape [b h w] for all three and a bool mask"
        )
    mask = mask.flatten(1)  # [b n]
    prediction = torch.where(mask, prediction.flatten(1).double(), 0)
    target = torch.where(mask, target.flatten(1).double(), 0)
    pixels = mask.sum(1).clamp(min=1)

    prediction_mean, target_mean = prediction.sum(1) / pixels, target.sum(1) / pixels  # [b]
    centred = torch.where(mask, prediction - prediction_mean[:, None], 0)
    variance = centred.square().sum(1) / pixels
    covariance = (centred * target).sum(1) / pixels
    rounding = 1e-12 * prediction_mean.abs()  # the mean of a constant is off by less than this
    solvable = ~(variance <= rounding.square())
    scale = torch.where(solvable, covariance / torch.where(solvable, variance, 1), 0)
    return scale, target_mean - scale * prediction_mean, solvable


def disparity_to_depth(
    prediction: Tensor, scale: Tensor, shift: Tensor, min_depth: float, max_depth: float
) -> Tensor:
    """Depth in metres from an aligned prediction.

    The aligned disparity is held to [1/max_depth, 1/min_depth] before it is inverted, so that what is at or
    below zero is as far as the protocol goes: a single such pixel can else bring AbsRel to 1000.

    Args:
        prediction: [b h w] disparity as the model gives it.
        scale, shift: [b] from `align_least_squares`.
        min_depth, max_depth: range of the protocol in metres, 0 < min_depth < max_depth.

    Returns:
        [b h w] depth in m, in the dtype of scale.
    """
    if not 0 < min_depth < max_depth:
        raise ValueError(f"depth range is {min_depth} to {max_depth} m; expected 0 < min_depth < max_depth")
    disparity = scale[:, None, None] * prediction + shift[:, None, None]
    return 1 / disparity.clamp(1 / max_depth, 1 / min_depth)
