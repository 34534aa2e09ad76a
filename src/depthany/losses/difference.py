"""The difference of two relative maps after normalisation, where it counts: what the relative losses share.

Legend: `b` images, `h w` pixels, `n` = h * w pixels of an image in a row.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from depthany.losses.normalise import NORMALISATIONS, pixel_rows
from depthany.losses.order import kth_largest, kth_smallest
from depthany.losses.reduce import masked_mean

REDUCTIONS = ("batch", "image")


class Difference(NamedTuple):
    """What `normalised_difference` returns.

    values: [b n] normalised prediction minus normalised target; finite but meaningless where not used.
    used: [b n] bool, True where the difference counts.
    """

    values: Tensor
    used: Tensor


def normalised_difference(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    box_mask: Tensor | None = None,
    normalisation: str = "median_mad",
    eps: float = 1e-6,
    min_pixels: int = 64,
    min_contrast: float = 0.01,
) -> Difference:
    """Removes shift and scale of each image, and of each region of a mixed image, and subtracts.

    Statistics are taken over valid pixels only; code derived from MiDaS lets the zeros of invalid pixels
    into the median. An image whose target is constant counts as having no valid pixel.

    Args:
        prediction, target: [b h w] disparity, any scale and shift per image; may be NaN off the mask.
        mask: [b h w] bool, True where the target is known.
        box_mask: [b h w] bool, True inside a box that CutMix pasted: inside and outside are normalised
            separately, see `_mixed`. None = no image is mixed.
        normalisation: name in `NORMALISATIONS`.
        eps: smallest scale that is divided by, and the spread up to which a map is constant; in disparity.
        min_pixels, min_contrast: what a region of a mixed image needs to take part, see `_mixed`.
    """
    rows, known = (pixel_rows(prediction, mask), pixel_rows(target, mask)), mask.flatten(1)  # [b n]
    if box_mask is not None:
        return _mixed(*rows, known, box_mask.flatten(1), normalisation, eps, min_pixels, min_contrast)
    maps = NORMALISATIONS[normalisation](*rows, known, eps)
    used = known & ~(maps.spread <= eps)[:, None]  # a NaN target under the mask must show as a NaN loss
    return Difference(maps.prediction - maps.target, used)


def _mixed(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    box: Tensor,
    normalisation: str,
    eps: float,
    min_pixels: int,
    min_contrast: float,
) -> Difference:
    """Difference of images made of two, normalised separately inside and outside the pasted box.

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
    """
    regions = torch.cat([mask & box, mask & ~box])  # [2b n] first all insides, then all outsides
    maps = NORMALISATIONS[normalisation](prediction.repeat(2, 1), target.repeat(2, 1), regions, eps)

    mean = masked_mean(target, mask)  # [b 1]
    contrast = masked_mean((target - mean).abs(), mask)[:, 0].repeat(2)  # [2b]
    pixels, image_pixels = regions.sum(1), mask.sum(1).repeat(2)  # [2b]
    usable = (pixels == image_pixels) | ((pixels >= min_pixels) & ~(maps.spread < min_contrast * contrast))
    used = regions & (usable & ~(maps.spread <= eps))[:, None]

    inside, outside = (maps.prediction - maps.target).chunk(2)
    used_inside, used_outside = used.chunk(2)
    return Difference(torch.where(box, inside, outside), used_inside | used_outside)


def error_of(values: Tensor, normalisation: str) -> Tensor:
    """Returns the error [b n] of differences `values` [b n]: half squares after least squares, else sizes."""
    return values.square() / 2 if normalisation == "least_squares" else values.abs()


def without_largest(error: Tensor, used: Tensor, trim: float) -> Tensor:
    """Returns `used` [b n] bool without the share `trim` of each image's used pixels with largest error.

    Args:
        error: [b n]. used: [b n] bool, True where it counts.
        trim: share in [0, 1).
    """
    if trim == 0:
        return used
    largest_kept = _largest_kept if error.device.type == "cpu" else largest_kept_by_rank
    return used & ~(error > largest_kept(error, used, trim))


def largest_kept_by_rank(error: Tensor, used: Tensor, trim: float) -> Tensor:
    """Returns the largest error [b 1] that `without_largest` keeps, on a GPU: without a scan of each row.

    Args:
        error, used, trim: see `without_largest`.
    """
    dropped = (trim * used.sum(1, keepdim=True).double()).long()  # [b 1]
    return kth_largest(error, used, dropped + 1, int(trim * error.shape[1]) + 1)


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


def check_maps(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    box_mask: Tensor | None,
    normalisation: str,
    reduction: str,
    trim: float,
) -> None:
    """Raises ValueError if shapes or dtypes do not fit, or an option is unknown or out of its range.

    Args:
        prediction, target: [b h w]. mask, box_mask: [b h w] bool.
    """
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
