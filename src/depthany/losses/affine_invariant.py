"""The affine-invariant loss of Depth Anything as a pure function of (prediction, target, mask).

It is vectorised over the batch, free of host syncs, and computed in at least float32 whatever autocast is on.
Legend: `b` images, `h w` pixels, `n` = h * w pixels of an image in a row.
"""

import torch
from torch import Tensor

from depthany.losses.normalise import NORMALISATIONS, pixel_rows
from depthany.losses.order import kth_smallest
from depthany.losses.reduce import MeanOverRanks, masked_mean, on_one_rank, one_if_zero

REDUCTIONS = ("batch", "image")


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
    mean_over_ranks: MeanOverRanks = on_one_rank,
) -> Tensor:
    """Mean error between prediction and target after the shift and scale of each image are removed.

    `median_mad`: error |d̂* - d̂| of maps without median and MAD. Source: Yang et al. 2024 (arXiv 2401.10891)
    eq. 1-3, where the mask is left out. `least_squares`: error ½(d̂ - d*)² of the fitted prediction. Source:
    Ranftl et al. 2020 (arXiv 1907.01341), the loss ssimse. It keeps the target's scale: use targets in 0..1.

    Statistics are taken over valid pixels only; code derived from MiDaS lets the zeros of invalid pixels
    into the median. An image whose target is constant counts as having no valid pixel.

    Args:
        prediction, target: [b h w] disparity, any scale and shift per image; may be NaN off the mask.
        mask: [b h w] bool, True where the target is known. An image without such a pixel adds nothing.
        box_mask: [b h w] bool, True inside a box that CutMix pasted: inside and outside are normalised
            separately, see `_mixed_error`. None = no image is mixed.
        normalisation: "median_mad" (the paper) or "least_squares" (MiDaS).
        reduction: "batch" takes the mean over all valid pixels; "image" takes the mean of each image first,
            so that a sparse target weighs as much as a dense one.
        trim: share of each image's valid pixels that is dropped, those of largest error, in [0, 1). 0.1 is
            the rule for pseudo-labels of Depth Anything V2 (arXiv 2406.09414) section 5.2.
        eps: smallest scale that is divided by, and the spread up to which a map is constant; in disparity.
        min_pixels, min_contrast: what a region of a mixed image needs to take part, see `_mixed_error`.
        mean_over_ranks: see `depthany.losses.reduce.MeanOverRanks`.

    Returns:
        [] the loss; float64 for float64 input, else float32.

    Raises:
        ValueError: shapes or dtypes do not fit, or an option is unknown or out of its range.
    """
    _check(prediction, target, mask, box_mask, normalisation, reduction, trim)
    prediction, target, mask = (
        pixel_rows(prediction, mask),
        pixel_rows(target, mask),
        mask.flatten(1),
    )  # [b n]
    if box_mask is None:
        error, spread = _error(prediction, target, mask, normalisation, eps)
        used = mask & ~(spread <= eps)[:, None]  # a NaN target under the mask must show as a NaN loss
    else:
        box = box_mask.flatten(1)
        least = min_pixels, min_contrast
        error, used = _mixed_error(prediction, target, mask, box, normalisation, eps, *least)
    return _reduce(error, used, reduction, trim, mean_over_ranks)


def _error(
    prediction: Tensor, target: Tensor, mask: Tensor, normalisation: str, eps: float
) -> tuple[Tensor, Tensor]:
    """Returns the error [b n] of each pixel after normalisation, finite off the mask, and the spread [b]."""
    maps = NORMALISATIONS[normalisation](prediction, target, mask, eps)
    difference = maps.prediction - maps.target  # [b n]
    return (difference.square() / 2 if normalisation == "least_squares" else difference.abs()), maps.spread


def _mixed_error(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    box: Tensor,
    normalisation: str,
    eps: float,
    min_pixels: int,
    min_contrast: float,
) -> tuple[Tensor, Tensor]:
    """Error of images made of two, normalised separately inside and outside the pasted box.

    Source: Yang et al. 2024 (arXiv 2401.10891) eq. 5-8. The paper weighs the means of the two regions by
    their areas ΣM/HW and Σ(1-M)/HW, which is the mean over the pixels of both; here over the valid ones.

    Departure from the paper: a box may be as small as 2 % of the image and fall on sky or a wall, where
    normalising by the region's own deviation would blow the teacher's noise up to full scale. Such a region
    is left out, and with it its weight. The trim is that of the whole image, after normalisation.

    Args:
        prediction, target: [b n] finite; the target is mixed like the image.
        mask, box: [b n] bool, True where the target is known; True inside the pasted box.
        min_pixels: valid pixels that a region of a mixed image needs to take part.
        min_contrast: smallest spread of a region's target, relative to the mean absolute deviation of the
            whole mixed target.

    Returns:
        Error [b n], and [b n] bool where it counts.
    """
    regions = torch.cat([mask & box, mask & ~box])  # [2b n] first all insides, then all outsides
    error, spread = _error(prediction.repeat(2, 1), target.repeat(2, 1), regions, normalisation, eps)

    mean = masked_mean(target, mask)  # [b 1]
    contrast = masked_mean((target - mean).abs(), mask)[:, 0].repeat(2)  # [2b]
    pixels, image_pixels = regions.sum(1), mask.sum(1).repeat(2)  # [2b]
    usable = (pixels == image_pixels) | ((pixels >= min_pixels) & ~(spread < min_contrast * contrast))
    used = regions & (usable & ~(spread <= eps))[:, None]

    error_inside, error_outside = error.chunk(2)
    used_inside, used_outside = used.chunk(2)
    return torch.where(box, error_inside, error_outside), used_inside | used_outside


def _reduce(
    error: Tensor, used: Tensor, reduction: str, trim: float, mean_over_ranks: MeanOverRanks
) -> Tensor:
    """Returns the mean [] of error [b n] over the pixels in `used` [b n] that survive the trim."""
    if trim > 0:
        used = used & ~(error > _largest_kept(error, used, trim))
    total = torch.where(used, error, 0).sum(1)  # [b]
    pixels = used.sum(1)  # [b]
    if reduction == "batch":
        return total.sum() / one_if_zero(mean_over_ranks(pixels.sum()))
    return (total / pixels.clamp(min=1)).sum() / one_if_zero(mean_over_ranks((pixels > 0).sum()))


def _largest_kept(error: Tensor, used: Tensor, trim: float) -> Tensor:
    """Returns the largest error [b 1] of each image that is kept when `trim` of its used pixels is dropped.

    kthvalue is about 8 times as fast as a sort, but takes one k for all rows while the number of used pixels
    differs. So some unused pixels are set below all others: as many as make the k of a full row right.
    """
    n = error.shape[1]
    kept_of_full_row = n - int(trim * n)
    used_pixels = used.sum(1, keepdim=True)  # [b 1]
    kept = used_pixels - (trim * used_pixels.double()).long()  # [b 1]
    below = (~used).cumsum(1) <= kept_of_full_row - kept  # [b n]
    filler = torch.where(below, -torch.inf, torch.inf)
    return kth_smallest(torch.where(used, error.detach(), filler), kept_of_full_row)


def _check(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    box_mask: Tensor | None,
    normalisation: str,
    reduction: str,
    trim: float,
) -> None:
    if not prediction.shape == target.shape == mask.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"prediction is {_describe(prediction)}, target {_describe(target)}, mask {_describe(mask)}; "
            "expected one shape [b h w] for all three and a bool mask"
        )
    if box_mask is not None and (box_mask.shape != mask.shape or box_mask.dtype != torch.bool):
        raise ValueError(f"box_mask is {_describe(box_mask)}; expected bool of shape {tuple(mask.shape)}")
    if normalisation not in NORMALISATIONS:
        raise ValueError(f"unknown normalisation {normalisation!r}; choose from {', '.join(NORMALISATIONS)}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"unknown reduction {reduction!r}; choose from {', '.join(REDUCTIONS)}")
    if not 0 <= trim < 1:
        raise ValueError(f"trim is {trim}; expected a share in [0, 1)")


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{tuple(tensor.shape)}"
