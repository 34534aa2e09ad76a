"""The affine-invariant loss of Depth Anything as a pure function of (prediction, target, mask).

It is vectorised over the batch, free of host syncs, and computed in at least float32 whatever autocast is on.
Legend: `b` images, `h w` pixels, `n` = h * w pixels of an image in a row.
"""

import torch
from torch import Tensor

from depthany.losses.difference import (
    Difference,
    check_maps,
    error_of,
    normalised_difference,
    without_largest,
)
from depthany.losses.reduce import MeanOverRanks, mean_of_sums, on_one_rank


def affine_invariant_loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    box_mask: Tensor | None = None,
    normalisation: str = "median_mad",
    reduction: str = "batch",
    trim: float = 0.0,
    eps: float = 1e-6,
    min_pixels: int = 64,
    min_contrast: float = 0.01,
    difference: Difference | None = None,
    mean_over_ranks: MeanOverRanks = on_one_rank,
) -> Tensor:
    """Mean error between prediction and target after the shift and scale of each image are removed.

    `median_mad`: error |d̂* - d̂| of maps without median and MAD. Source: Yang et al. 2024 (arXiv 2401.10891)
    eq. 1-3, where the mask is left out. `least_squares`: error ½(d̂ - d*)² of the fitted prediction. Source:
    Ranftl et al. 2020 (arXiv 1907.01341), the loss ssimse. It keeps the target's scale: use targets in 0..1.

    Args:
        prediction, target: [b h w] disparity, any scale and shift per image; may be NaN off the mask.
        mask: [b h w] bool, True where the target is known. An image without such a pixel adds nothing.
        box_mask: [b h w] bool, True inside a box that CutMix pasted: inside and outside are normalised
            separately. None = no image is mixed.
        normalisation: "median_mad" (the paper) or "least_squares" (MiDaS).
        reduction: "batch" takes the mean over all valid pixels; "image" takes the mean of each image first,
            so that a sparse target weighs as much as a dense one.
        trim: share of each image's valid pixels that is dropped, those of largest error, in [0, 1). 0.1 is
            the rule for pseudo-labels of Depth Anything V2 (arXiv 2406.09414) section 5.2.
        eps, min_pixels, min_contrast: see `normalised_difference`.
        difference: `normalised_difference` of the same arguments, where the caller has it.
        mean_over_ranks: see `depthany.losses.reduce.MeanOverRanks`.

    Returns:
        [] the loss; float64 for float64 input, else float32.

    Raises:
        ValueError: shapes or dtypes do not fit, or an option is unknown or out of its range.
    """
    check_maps(prediction, target, mask, box_mask, normalisation, reduction, trim)
    values, used = difference or normalised_difference(
        prediction,
        target,
        mask,
        box_mask=box_mask,
        normalisation=normalisation,
        eps=eps,
        min_pixels=min_pixels,
        min_contrast=min_contrast,
    )
    error = error_of(values, normalisation)  # [b n]
    used = without_largest(error, used, trim)
    total, pixels = torch.where(used, error, 0).sum(1), used.sum(1)  # [b]
    return mean_of_sums(total, pixels, reduction, mean_over_ranks)
