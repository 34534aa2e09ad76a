"""Means of the maps that a model predicts of several views or windows of the same images."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from depthany.metrics.align import align_least_squares


def finite_maps(maps: Tensor) -> Tensor:
    """Returns [b] bool, whether each of `maps` [b ...] is finite everywhere."""
    return torch.isfinite(maps).flatten(1).all(1)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Returns where windows begin that cover `length` pixels; the last one ends at the edge."""
    return [*range(0, max(length - window, 0), stride), max(length - window, 0)]


def average_classes(views: Sequence[Tensor], align_corners: bool) -> Tensor:
    """Returns the logarithm [b k h w] of the mean probability over views, at the size of the largest one.

    Args:
        views: logits [b k h w]; h and w may differ. A single view is returned as it is.
    """
    if len(views) == 1:
        return views[0]
    largest = max((view.shape[-2:] for view in views), key=lambda shape: shape[0] * shape[1])
    resized = [F.interpolate(view, largest, mode="bilinear", align_corners=align_corners) for view in views]
    return torch.stack([view.softmax(1) for view in resized]).mean(0).clamp(min=1e-12).log()


def average(views: Sequence[Tensor], align: bool) -> Tensor:
    """Returns the mean over views of the same images, at the size of the largest view.

    Args:
        views: maps [b h w]; h and w may differ from view to view.
        align: first fit each view to the first one by scale and shift, in least squares. Needed for
            disparity, whose scale and shift have no meaning and differ from view to view.

    Returns:
        [b h w]; the view itself if there is only one.
    """
    if len(views) == 1:
        return views[0]
    largest = max((view.shape[-2:] for view in views), key=lambda shape: shape[0] * shape[1])
    resized = [
        F.interpolate(view[:, None], largest, mode="bilinear", align_corners=True)[:, 0] for view in views
    ]
    if align:
        resized[1:] = [_fitted(view, resized[0]) for view in resized[1:]]
    return torch.stack(resized).mean(0)


def _fitted(view: Tensor, reference: Tensor) -> Tensor:
    """`view` [b h w], fitted to `reference` [b h w] by scale and shift per image."""
    everywhere = torch.ones_like(view, dtype=torch.bool)
    scale, shift, _ = align_least_squares(view, reference, everywhere)
    return scale[:, None, None].float() * view + shift[:, None, None].float()
