"""Gradient matching: the difference of two maps must not change from a pixel to the next; for sharp edges.

Legend: `b` images, `h w` pixels, `k` scales.
"""

from collections.abc import Iterator

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

SCALES = 4  # every pixel, every 2nd, 4th and 8th


def gradient_loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    box_mask: Tensor | None = None,
    normalisation: str = "median_mad",
    reduction: str = "batch",
    scales: int = SCALES,
    trim: float = 0.0,
    trim_gradient: bool = False,
    eps: float = 1e-6,
    min_pixels: int = 64,
    min_contrast: float = 0.01,
    difference: Difference | None = None,
    mean_over_ranks: MeanOverRanks = on_one_rank,
) -> Tensor:
    """Sum over scales of the mean |dx| + |dy| of R, the difference of the maps that the affine-invariant
    loss compares.

    Source: Ranftl et al. 2020 (arXiv 1907.01341) eq. 11 in the form of MiDaS' code, to which the authors of
    Depth Anything V2 point: scale k has every 2^k-th pixel, its sum is divided by the number of its valid
    pixels, and the scales are added. Depth Anything V2 (arXiv 2406.09414, section 7) adds it with weight 2 to
    the affine-invariant loss of V1's eq. 1; V2 does not publish the number of scales, MiDaS has 4. MiDaS'
    code halves its affine-invariant losses and V1's eq. 1 does not. Here "median_mad" is eq. 1, so the same
    weight counts half as much as in MiDaS' code; "least_squares" is halved as there.

    A pair of neighbours counts where both are valid, and in a mixed image both in the same region: inside and
    outside of the box have scales of their own, so a step of R across the border means nothing.

    Args:
        prediction, target: [b h w] disparity, any scale and shift per image; may be NaN off the mask.
        mask: [b h w] bool, True where the target is known. An image without such a pixel adds nothing.
        box_mask, normalisation, eps, min_pixels, min_contrast: see `normalised_difference`.
        reduction: "batch": the mean over the valid pixels of all images; "image": of each image first.
        scales: how many, from 1.
        trim, trim_gradient: trim_gradient=True leaves out the pixels that the affine-invariant loss drops;
            False leaves out none. V2 does not say.
        difference: `normalised_difference` of the same arguments, where the caller has it.
        mean_over_ranks: see `depthany.losses.reduce.MeanOverRanks`.

    Returns:
        [] the loss; float64 for float64 input, else float32. Raises ValueError like `affine_invariant_loss`.
    """
    check_maps(prediction, target, mask, box_mask, normalisation, reduction, trim)
    if scales < 1:
        raise ValueError(f"scales is {scales}; expected 1 or more")
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
    if trim_gradient:
        used = without_largest(error_of(values, normalisation), used, trim)
    difference_map, known = values.view(mask.shape), used.view(mask.shape)  # [b h w]
    totals, pixels = _sums_of_scales(difference_map, known, box_mask, scales)
    return mean_of_sums(totals, pixels, reduction, mean_over_ranks).sum()


def _sums_of_scales(
    values: Tensor, known: Tensor, region: Tensor | None, scales: int
) -> tuple[Tensor, Tensor]:
    """Returns [b k] the sum of all steps, and the number of known pixels, of each image at each scale."""
    totals: list[Tensor] = []  # of each scale: [b]
    pixels: list[Tensor] = []
    for k in range(scales):
        every = (slice(None), slice(None, None, 2**k), slice(None, None, 2**k))
        regions = None if region is None else region[every]
        steps = [step.sum((1, 2)) for step, _ in steps_between(values[every], known[every], regions)]
        totals.append(torch.stack(steps).sum(0))
        pixels.append(known[every].sum((1, 2)))
    return torch.stack(totals, 1), torch.stack(pixels, 1)


def steps_between(
    values: Tensor, mask: Tensor, region: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields |step| between neighbours and which pairs count: first one below the other, then side by side.

    Args:
        values: [b h w], finite off the mask.
        mask: [b h w] bool; a pair counts where both of its pixels are in it.
        region: [b h w]; a pair counts where both of its pixels have the same value; None = all have.

    Yields:
        [b h-1 w], then [b h w-1]: the step, 0 where the pair does not count; and bool, whether it counts.
    """
    for axis in (1, 2):
        pairs = values.shape[axis] - 1

        def ends(each: Tensor, axis: int = axis, pairs: int = pairs) -> tuple[Tensor, Tensor]:
            return each.narrow(axis, 0, pairs), each.narrow(axis, 1, pairs)

        (first, second), (here, there) = ends(values), ends(mask)
        both = here & there
        if region is not None:
            one, other = ends(region)
            both = both & (one == other)
        yield torch.where(both, (second - first).abs(), 0), both
