"""Losses of class logits: cross-entropy, online hard example mining, and dice.

All take logits [b k h w], class numbers [b h w] int64 and a mask [b h w] that is False where a pixel is to be
ignored (255 in the files of masks). A batch without a known pixel gives 0 and no gradient, where
`torch.nn.functional.cross_entropy` gives NaN. Legend: `b` images, `k` classes, `h w` pixels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from depthany.losses.reduce import MeanOverRanks, on_one_rank, one_if_zero

OHEM_THRESHOLD, OHEM_LEAST = 0.7, 200_000


def cross_entropy_loss(
    prediction: Tensor, target: Tensor, mask: Tensor, *, mean_over_ranks: MeanOverRanks = on_one_rank
) -> Tensor:
    """Mean cross-entropy over the known pixels of the batch, those of other ranks included.

    Args:
        prediction: [b k h w] logits.
        target: [b h w] int64 class numbers, 0 to k - 1 on the mask; may be anything off it.
        mask: [b h w] bool, True where the class is known.
        mean_over_ranks: see `depthany.losses.reduce.MeanOverRanks`.

    Returns:
        [] the loss, float32.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    pixel_losses = per_pixel(prediction, target, mask)  # [b h w]
    return pixel_losses.sum() / one_if_zero(mean_over_ranks(mask.sum()))


def ohem_loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    ohem_threshold: float = OHEM_THRESHOLD,
    ohem_least: int = OHEM_LEAST,
    mean_over_ranks: MeanOverRanks = on_one_rank,
) -> Tensor:
    """Mean cross-entropy over the hard pixels: their true class has a probability up to `ohem_threshold`.

    At least `ohem_least` pixels of a rank's batch count, the hardest ones (all of them if it has fewer).
    Source: Shrivastava et al. 2016 (arXiv 1604.03540) as segmentation code has it, such as that of
    UniMatch-V2: threshold 0.7, at least 200,000 pixels.

    Args:
        prediction, target, mask, mean_over_ranks: see `cross_entropy_loss`.
        ohem_threshold: probability of the true class, 0..1, above which a pixel is easy.
        ohem_least: pixels of the batch that count at least.
    """
    pixel_losses = per_pixel(prediction, target, mask)  # [b h w]
    chosen = hard_pixels(pixel_losses.detach(), mask, ohem_threshold, ohem_least)
    return torch.where(chosen, pixel_losses, 0).sum() / one_if_zero(mean_over_ranks(chosen.sum()))


def dice_loss(
    prediction: Tensor, target: Tensor, mask: Tensor, *, mean_over_ranks: MeanOverRanks = on_one_rank
) -> Tensor:
    """1 - dice, the mean over the images and the classes that each image has.

    Dice of a class is 2 sum(p t) / (sum(p) + sum(t)) over the known pixels of an image, with the probability
    p and t = 1 where the class is the true one. Source: Milletari et al. 2016 (arXiv 1606.04797), without
    squares in the denominator as in most segmentation code. A class that an image lacks is left out: its dice
    would be 0 whatever is predicted.

    Args:
        prediction, target, mask, mean_over_ranks: see `cross_entropy_loss`.
    """
    require_shapes(prediction, target, mask)
    k = prediction.shape[1]
    known = mask[:, None]  # [b 1 h w]
    probability = torch.where(known, prediction.float().softmax(1), 0)  # [b k h w]
    one_hot = F.one_hot(torch.where(mask, target, 0), k).permute(0, 3, 1, 2)  # [b k h w]
    truth = torch.where(known, one_hot, 0).float()
    both = (probability * truth).sum((2, 3))  # [b k]
    pixels = truth.sum((2, 3))  # [b k]
    dice = 2 * both / (probability.sum((2, 3)) + pixels).clamp(min=1e-6)
    present = pixels > 0
    return torch.where(present, 1 - dice, 0).sum() / one_if_zero(mean_over_ranks(present.sum()))


def per_pixel(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Returns the cross-entropy [b h w] float32 of each pixel, 0 off the mask; see `cross_entropy_loss`.

    Args:
        prediction: [b k h w] logits. target: [b h w] int64. mask: [b h w] bool.
    """
    require_shapes(prediction, target, mask)
    ignored = -100
    return F.cross_entropy(
        prediction.float(), torch.where(mask, target, ignored), reduction="none", ignore_index=ignored
    )


def hard_pixels(pixel_losses: Tensor, mask: Tensor, threshold: float, least: int) -> Tensor:
    """Returns [b h w] bool, True for the pixels that `ohem_loss` counts.

    Args:
        pixel_losses: [b h w] -ln of the probability of the true class. mask: [b h w] bool.
    """
    hardness = torch.where(mask, pixel_losses, -1.0)
    limit = -torch.log(torch.full((), threshold, device=hardness.device))  # [] made on the device
    if least >= hardness.numel():
        return mask
    if least:
        limit = torch.minimum(limit, hardness.flatten().topk(least).values[-1])
    return mask & (hardness >= limit)


def require_shapes(prediction: Tensor, target: Tensor, mask: Tensor) -> None:
    """Raises a ValueError unless prediction is logits [b k h w], target int64 and mask bool [b h w]."""
    fits = prediction.ndim == 4 and prediction.shape[:1] + prediction.shape[2:] == target.shape == mask.shape
    if not fits or mask.dtype != torch.bool or target.dtype != torch.int64:
        found = ", ".join(f"{tuple(each.shape)} {each.dtype}" for each in (prediction, target, mask))
        raise ValueError(
            f"prediction, target and mask are {found}: a loss of classes takes logits [b k h w], int64 "
            "classes [b h w] and a bool mask [b h w]; stage=segmentation learns classes"
        )
