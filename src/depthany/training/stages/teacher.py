"""Stage 1: the teacher learns from labeled images alone."""

import torch
from torch import nn

from depthany.data.batch import Batch
from depthany.losses.affine_invariant import Normalisation, Reduction, affine_invariant_loss
from depthany.losses.counting import Across, alone
from depthany.models.preprocess import normalise
from depthany.training.stages.base import StageOutput, View, at_least_one, zero_fraction


class TeacherStage(nn.Module):
    """Stage 1: affine-invariant loss on labeled images (paper, section 3.1).

    Args:
        normalisation, reduction, across: see `affine_invariant_loss`.
    """

    def __init__(self, normalisation: Normalisation, reduction: Reduction, across: Across = alone) -> None:
        super().__init__()
        self.normalisation, self.reduction, self.across = normalisation, reduction, across

    def forward(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> StageOutput:
        """`generator` is not drawn from: labeled images are not perturbed."""
        count = len(batch.labeled_image)
        prediction = model(normalise(at_least_one(batch.labeled_image)))[:count]  # [l h w]
        loss = affine_invariant_loss(
            prediction,
            batch.target,
            batch.mask,
            normalisation=self.normalisation,
            reduction=self.reduction,
            across=self.across,
        )
        view = View(batch.labeled_image, batch.labeled_image, batch.target, batch.mask, prediction.detach())
        parts = {"loss/labeled": loss, "zero_outputs": zero_fraction(prediction, self.across)}
        parts = parts if batch.all_counts[0] else {}
        return StageOutput(loss, parts, {"labeled": view})
