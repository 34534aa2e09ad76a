"""The feature-alignment loss of Depth Anything."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from depthany.losses.reduce import MeanOverRanks, full_precision, on_one_rank, one_if_zero

MEANS_OVER = ("kept", "all")
CENTERS = ("none", "mean")


class FeatureAlignment(NamedTuple):
    """What `feature_alignment_loss` returns.

    loss: [] mean cosine distance of the tokens kept, 0 with zero gradient if no token is kept.
    kept: [] share of the tokens that are kept; its mean over the ranks is that of the whole batch.
    distance: [b n] cosine distance of each token, in 0..2, without gradient.
    acting: [] 1 if any token of all ranks is kept, else 0. None with mean_over="all", where the loss
        shrinks with the share of the tokens that are kept.
    """

    loss: Tensor
    kept: Tensor
    distance: Tensor
    acting: Tensor | None


def feature_alignment_loss(
    student_tokens: Tensor,
    frozen_tokens: Tensor,
    *,
    alpha: float = 0.15,
    mean_over: str = "kept",
    center: str = "none",
    mean_over_ranks: MeanOverRanks = on_one_rank,
) -> FeatureAlignment:
    """Pulls the student's features towards the frozen encoder's, except where they are near already.

    Source: Yang et al. 2024 (arXiv 2401.10891) eq. 9. Tokens with 1 - cos < alpha are left out, so that the
    student may tell apart parts of an object that the frozen encoder does not.

    Args:
        student_tokens: [b n c] final patch tokens of the student's encoder.
        frozen_tokens: [b n c] those of the frozen encoder; no gradient flows into them.
        alpha: margin in cosine distance, 0..2; 0.15 is the paper's cosine of 0.85.
        mean_over: divide by the number of "kept" tokens or of "all" tokens; the paper does not say which.
        center: "mean" subtracts `mean_token` from the tokens of both before the cosine; the paper does not.
        mean_over_ranks: see `depthany.losses.reduce.MeanOverRanks`.

    Raises:
        ValueError: the tokens differ in shape, or `mean_over` or `center` is unknown.
    """
    if student_tokens.shape != frozen_tokens.shape:
        raise ValueError(
            f"student tokens are {tuple(student_tokens.shape)}, frozen ones {tuple(frozen_tokens.shape)}; "
            "both encoders must be of one size and see the image at one resolution"
        )
    if mean_over not in MEANS_OVER:
        raise ValueError(f"unknown mean_over {mean_over!r}; choose from {', '.join(MEANS_OVER)}")
    if center not in CENTERS:
        raise ValueError(f"unknown center {center!r}; choose from {', '.join(CENTERS)}")
    student, frozen = full_precision(student_tokens), full_precision(frozen_tokens.detach())  # [b n c]
    if center == "mean":
        common = mean_token(frozen, mean_over_ranks)
        student, frozen = student - common, frozen - common
    distance = 1 - F.cosine_similarity(student, frozen, dim=-1)  # [b n] in 0..2
    kept = ~(distance < alpha)  # [b n]; NaN is kept, so that it shows
    kept_tokens = kept.sum()  # []
    tokens = mean_over_ranks(torch.full_like(kept_tokens, kept.numel()))
    counted = mean_over_ranks(kept_tokens) if mean_over == "kept" else tokens
    loss = torch.where(kept, distance, 0).sum() / one_if_zero(counted)
    share = kept.to(distance.dtype).sum() / one_if_zero(tokens)  # 0, not NaN, of an empty batch
    acting = (counted > 0).to(distance.dtype) if mean_over == "kept" else None
    return FeatureAlignment(loss, share, distance.detach(), acting)


def mean_token(tokens: Tensor, mean_over_ranks: MeanOverRanks = on_one_rank) -> Tensor:
    """Returns the mean [c] of the tokens [b n c] of all ranks: the direction that all of them share.

    Where it is long, the cosine of any two tokens is near 1, whatever they show. Without it the cosine
    compares what is special to a place. Source: Mu and Viswanath 2018, "All-but-the-Top" (arXiv 1702.01417),
    section 2, step 1; their step 2, which removes the top principal directions too, is left out. DINO (Caron
    et al. 2021, arXiv 2104.14294, eq. 4) subtracts a running mean of the teacher's outputs. A mean of the
    batch at hand needs no state: a resumed run finds the same one.
    """
    count = mean_over_ranks(torch.ones_like(tokens[..., 0], dtype=torch.bool).sum())
    return mean_over_ranks(tokens.sum((0, 1))) / one_if_zero(count)
