"""Stage 1: the teacher learns from labeled images alone."""

import torch
from torch import nn

from depthany.data.batch import Batch
from depthany.losses.affine_invariant import affine_invariant_loss
from depthany.losses.reduce import MeanOverRanks, on_one_rank
from depthany.models.model import DenseModel
from depthany.training.stages.base import StageOutput, View, at_least_one, zero_fraction


class TeacherStage(nn.Module):
    """Stage 1: affine-invariant loss on labeled images (paper, section 3.1).

    Args:
        normalisation, reduction, mean_over_ranks: see `affine_invariant_loss`.
    """

    def __init__(
        self, normalisation: str, reduction: str, mean_over_ranks: MeanOverRanks = on_one_rank
    ) -> None:
        super().__init__()
        self.normalisation, self.reduction, self.mean_over_ranks = normalisation, reduction, mean_over_ranks

    def forward(self, model: DenseModel, batch: Batch, generator: torch.Generator) -> StageOutput:
        """`generator` is not drawn from: labeled images are not perturbed."""
        count = len(batch.labeled_image)
        image = model.preprocessing.normalise(at_least_one(batch.labeled_image))
        prediction = model(image).map[:count]  # [l h w]
        loss = affine_invariant_loss(
            prediction,
            batch.disparity,
            batch.mask,
            normalisation=self.normalisation,
            reduction=self.reduction,
            mean_over_ranks=self.mean_over_ranks,
        )
        view = View(
            batch.labeled_image, batch.labeled_image, batch.disparity, batch.mask, prediction.detach()
        )
        parts = {"loss/labeled": loss, "zero_outputs": zero_fraction(prediction, self.mean_over_ranks)}
        parts = parts if batch.all_counts[0] else {}
        return StageOutput(loss, parts, {"labeled": view})
