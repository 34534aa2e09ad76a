"""The affine-invariant loss of Depth Anything as a pure function of (prediction, target, mask).

Everything is vectorised over the batch, free of host syncs, and computed in at least float32 whatever
autocast is on. Legend: `b` images, `h w` pixels, `n` pixels of an image in a row or tokens, `c` channels.
"""

from typing import Literal

import torch
from torch import Tensor

from depthany.losses.counting import Across, alone, full_precision, or_one

Normalisation = Literal["median_mad", "least_squares"]


Reduction = Literal["batch", "image"]


NORMALISATIONS = ("median_mad", "least_squares")


REDUCTIONS = ("batch", "image")


def affine_invariant_loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    normalisation: Normalisation = "median_mad",
    reduction: Reduction = "batch",
    trim: float = 0.0,
    eps: float = 1e-6,
    across: Across = alone,
) -> Tensor:
    """Mean error between prediction and target after each image's own shift and scale are removed.

    `median_mad`: both maps lose their median and are divided by their mean absolute deviation about it,
    error |d̂* - d̂|. Source: Yang et al. 2024 (arXiv 2401.10891) eq. 1-3, where the mask is left out.
    `least_squares`: the prediction is scaled and shifted onto the target, error ½(d̂ - d*)². Source: Ranftl
    et al. 2020 (arXiv 1907.01341), the loss ssimse. It keeps the target's scale: give targets in 0..1.

    Statistics are taken over valid pixels only; code derived from MiDaS lets the zeros of invalid pixels
    into the median. An image whose target is constant says nothing and counts as having no valid pixel.

    Args:
        prediction, target: [b h w] disparity, any scale and shift per image; even NaN off the mask.
        mask: [b h w] bool, True where the target is known; an image with none adds 0 and no gradient.
        normalisation: "median_mad" (the paper) or "least_squares" (MiDaS).
        reduction: "batch" divides the sum over all valid pixels of the batch by their number; "image" takes
            the mean of each image first, so that a sparse target weighs as much as a dense one.
        trim: share of each image's valid pixels, those of largest error, that is dropped, in [0, 1). 0.1 is
            the rule for pseudo-labels of Depth Anything V2 (arXiv 2406.09414) section 5.2.
        eps: smallest scale that is divided by, and the spread up to which a map is constant; in disparity.
        across: where a batch is shared by processes, the mean over them of a number. The mean over the
            processes of what each gets is then the loss of the whole batch, and so with gradients.

    Returns:
        [] the loss; float64 for float64 input, else float32.
    """
    _check(prediction, target, mask, normalisation, reduction, trim)
    prediction, target, mask = _pixel_rows(prediction, target, mask)
    error, spread = _normalised_error(prediction, target, mask, normalisation, eps)
    informative = ~(spread <= eps)  # a NaN target under the mask must show as a NaN loss
    return _reduce(error, mask & informative[:, None], reduction, trim, across)


def cutmix_affine_invariant_loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    box_mask: Tensor,
    *,
    normalisation: Normalisation = "median_mad",
    reduction: Reduction = "batch",
    trim: float = 0.0,
    eps: float = 1e-6,
    min_pixels: int = 64,
    min_contrast: float = 0.01,
    across: Across = alone,
) -> Tensor:
    """Affine-invariant loss of images made of two: normalised separately inside and outside the pasted box.

    Source: Yang et al. 2024 (arXiv 2401.10891) eq. 5-8. The paper weighs the means of the two regions by
    their areas ΣM/HW and Σ(1-M)/HW, which is the mean over the pixels of both; here over the valid ones.
    An image without a box gives exactly `affine_invariant_loss`.

    Departure from the paper: a box may be as small as 2 % of the image and fall on sky or a wall, where
    normalising by the region's own deviation would blow the teacher's noise up to full scale. Such a region
    is left out, and with it its weight. The trim is that of the whole image, after normalisation.

    Args:
        prediction, target, mask, normalisation, reduction, trim, eps, across: as for
            `affine_invariant_loss`; the target is mixed like the image.
        box_mask: [b h w] bool, True inside the pasted box; all False where nothing was pasted.
        min_pixels: valid pixels that a region of a mixed image needs to take part.
        min_contrast: smallest spread of a region's target, relative to the mean absolute deviation of the
            whole mixed target.
    """
    _check(prediction, target, mask, normalisation, reduction, trim)
    if box_mask.shape != mask.shape or box_mask.dtype != torch.bool:
        raise ValueError(f"box_mask is {_describe(box_mask)}; expected bool of shape {tuple(mask.shape)}")
    prediction, target, mask = _pixel_rows(prediction, target, mask)
    box = box_mask.flatten(1)  # [b n]

    regions = torch.cat([mask & box, mask & ~box])  # [2b n] first all insides, then all outsides
    error, spread = _normalised_error(
        prediction.repeat(2, 1), target.repeat(2, 1), regions, normalisation, eps
    )

    mean = _masked_mean(target, mask)
    contrast = _masked_mean((target - mean).abs(), mask)[:, 0].repeat(2)  # [2b]
    pixels, image_pixels = regions.sum(1), mask.sum(1).repeat(2)
    usable = (pixels == image_pixels) | ((pixels >= min_pixels) & ~(spread < min_contrast * contrast))
    used = regions & (usable & ~(spread <= eps))[:, None]

    error_inside, error_outside = error.chunk(2)
    used_inside, used_outside = used.chunk(2)
    error = torch.where(box, error_inside, error_outside)
    return _reduce(error, used_inside | used_outside, reduction, trim, across)


def _normalised_error(
    prediction: Tensor, target: Tensor, mask: Tensor, normalisation: Normalisation, eps: float
) -> tuple[Tensor, Tensor]:
    """Per-pixel error [b n] after normalisation, and the spread [b] of the target in disparity.

    The error off the mask is finite and to be dropped by the caller.
    """
    if normalisation == "least_squares":
        return _least_squares_error(prediction, target, mask, eps)
    predicted, _ = _remove_median_and_mad(prediction, mask, eps)
    expected, spread = _remove_median_and_mad(target, mask, eps)
    return (expected - predicted).abs(), spread


def _remove_median_and_mad(disparity: Tensor, mask: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(d - t) / s with t the median and s the mean absolute deviation about it: [b n], and s [b].

    Of an even number of pixels the lower middle one is the median, as in `torch.median`; the gradient of t
    goes to that pixel alone. nanmedian is 3 to 4 times as fast on a CPU as a sort of the whole row.
    """
    median = torch.where(mask, disparity, torch.nan).nanmedian(1, keepdim=True).values  # [b 1]
    median = torch.where(mask.any(1, keepdim=True), median, 0)
    centred = disparity - median
    scale = _masked_mean(centred.abs(), mask)  # [b 1]
    return centred / scale.clamp(min=eps), scale[:, 0]


def _least_squares_error(
    prediction: Tensor, target: Tensor, mask: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """½(s·d + t - d*)² with s, t solved per image: [b n], and the standard deviation of d* [b].

    The normal equations are solved about the means, which spares float32 the cancellation in n·Σd² - (Σd)².
    A constant prediction has no scale: it gets s = 0, hence no gradient.
    """
    prediction_mean, target_mean = _masked_mean(prediction, mask), _masked_mean(target, mask)  # [b 1]
    prediction, target = prediction - prediction_mean, target - target_mean
    variance = _masked_mean(prediction.square(), mask)
    rounding = 1e-6 * prediction_mean.detach().abs()  # the mean of a constant is off by this at most
    solvable = ~(variance <= rounding.clamp(min=eps).square())
    covariance = _masked_mean(prediction * target, mask)
    scale = torch.where(solvable, covariance / torch.where(solvable, variance, 1), 0)
    spread = _masked_mean(target.square(), mask).sqrt()[:, 0]
    return (scale * prediction - target).square() / 2, spread


def _reduce(error: Tensor, used: Tensor, reduction: Reduction, trim: float, across: Across) -> Tensor:
    """Mean of error [b n] over the pixels in `used` [b n] that survive the trim."""
    if trim > 0:
        used = used & ~(error > _largest_kept(error, used, trim))
    total = torch.where(used, error, 0).sum(1)  # [b]
    pixels = used.sum(1)
    if reduction == "batch":
        return total.sum() / or_one(across(pixels.sum()))
    return (total / pixels.clamp(min=1)).sum() / or_one(across((pixels > 0).sum()))


def _largest_kept(error: Tensor, used: Tensor, trim: float) -> Tensor:
    """Largest error [b 1] of each image that is kept when the share `trim` of its used pixels is dropped.

    kthvalue is about 8 times as fast as a sort but knows one k for all rows, while the number of used pixels
    differs. So as many unused pixels are put below all others as make the k of a full row right for each.
    """
    n = error.shape[1]
    kept_of_full_row = n - int(trim * n)
    used_pixels = used.sum(1, keepdim=True)
    kept = used_pixels - (trim * used_pixels.double()).long()  # [b 1]
    below = (~used).cumsum(1) <= kept_of_full_row - kept
    filler = torch.where(below, -torch.inf, torch.inf)
    return torch.where(used, error.detach(), filler).kthvalue(kept_of_full_row, 1, keepdim=True).values


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the mask: [b n] -> [b 1], 0 where the mask is empty."""
    return torch.where(mask, values, 0).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)


def _pixel_rows(prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[b h w] -> [b n] in full precision, with 0 for whatever stands off the mask."""
    mask = mask.flatten(1)
    prediction = torch.where(mask, full_precision(prediction).flatten(1), 0)
    target = torch.where(mask, full_precision(target).flatten(1), 0)
    return prediction, target, mask


def _check(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    normalisation: Normalisation,
    reduction: Reduction,
    trim: float,
) -> None:
    if not prediction.shape == target.shape == mask.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"prediction is {_describe(prediction)}, target {_describe(target)}, mask {_describe(mask)}; "
            "expected one shape [b h w] for all three and a bool mask"
        )
    if normalisation not in NORMALISATIONS:
        raise ValueError(f"unknown normalisation {normalisation!r}; choose from {', '.join(NORMALISATIONS)}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"unknown reduction {reduction!r}; choose from {', '.join(REDUCTIONS)}")
    if not 0 <= trim < 1:
        raise ValueError(f"trim is {trim}; expected a share in [0, 1)")


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{tuple(tensor.shape)}"
