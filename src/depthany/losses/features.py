"""The feature-alignment loss of Depth Anything."""

import torch
import torch.nn.functional as F
from torch import Tensor

from depthany.losses.reduce import MeanOverRanks, full_precision, on_one_rank, one_if_zero

MEANS_OVER = ("kept", "all")


def feature_alignment_loss(
    student_tokens: Tensor,
    frozen_tokens: Tensor,
    *,
    alpha: float = 0.15,
    mean_over: str = "kept",
    mean_over_ranks: MeanOverRanks = on_one_rank,
) -> tuple[Tensor, Tensor]:
    """Pulls the student's features towards the frozen encoder's, except where they are near already.

    Source: Yang et al. 2024 (arXiv 2401.10891) eq. 9. Tokens with 1 - cos < alpha are left out, so that the
    student may tell apart parts of an object that the frozen encoder does not.

    Args:
        student_tokens: [b n c] final patch tokens of the student's encoder.
        frozen_tokens: [b n c] those of the frozen encoder; no gradient flows into them.
        alpha: margin in cosine distance, 0..2; 0.15 is the paper's cosine of 0.85.
        mean_over: divide by the number of "kept" tokens or of "all" tokens; the paper does not say which.
        mean_over_ranks: see `depthany.losses.reduce.MeanOverRanks`.

    Returns:
        [] mean cosine distance, 0 with zero gradient if no token is kept; and [] the share of tokens kept,
        whose mean over the ranks is that of the whole batch.

    Raises:
        ValueError: the tokens differ in shape, or `mean_over` is unknown.
    """
    if student_tokens.shape != frozen_tokens.shape:
        raise ValueError(
            f"student tokens are {tuple(student_tokens.shape)}, frozen ones {tuple(frozen_tokens.shape)}; "
            "both encoders must be of one size and see the image at one resolution"
        )
    if mean_over not in MEANS_OVER:
        raise ValueError(f"unknown mean_over {mean_over!r}; choose from {', '.join(MEANS_OVER)}")
    similarity = F.cosine_similarity(
        full_precision(student_tokens), full_precision(frozen_tokens.detach()), dim=-1
    )  # [b n]
    distance = 1 - similarity  # [b n] in 0..2
    kept = ~(distance < alpha)  # [b n]; NaN is kept, so that it shows
    tokens = mean_over_ranks(torch.ones_like(kept).sum())
    counted = mean_over_ranks(kept.sum()) if mean_over == "kept" else tokens
    loss = torch.where(kept, distance, 0).sum() / one_if_zero(counted)
    return loss, kept.to(distance.dtype).sum() / one_if_zero(tokens)  # 0, not NaN, of an empty batch
