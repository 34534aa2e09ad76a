"""Stage 1: the teacher learns from labeled images alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from depthany.data.batch import Batch
from depthany.losses.reduce import MeanOverRanks, on_one_rank
from depthany.losses.table import weighted_terms
from depthany.models.model import DenseModel
from depthany.training.stages.base import (
    Needs,
    Stage,
    StageContext,
    StageImages,
    StageOutput,
    TermsSettings,
    at_least_one,
    term_scalars,
    zero_fraction,
)


@dataclass
class TeacherSettings(TermsSettings):
    """configs/stage/teacher.yaml."""


class TeacherStage(Stage):
    """Stage 1: losses on labeled images, which are not perturbed (paper, section 3.1).

    Args:
        settings: see configs/stage/teacher.yaml.
        loss_options, mean_over_ranks: see `weighted_terms`.
    """

    Settings = TeacherSettings
    needs = Needs(labeled=True)

    def __init__(
        self,
        settings: TeacherSettings,
        loss_options: Mapping[str, Any],
        mean_over_ranks: MeanOverRanks = on_one_rank,
    ) -> None:
        super().__init__()
        self.settings, self.loss_options = settings, dict(loss_options)
        self.mean_over_ranks = mean_over_ranks

    @classmethod
    def build(cls, settings: TeacherSettings, context: StageContext) -> "TeacherStage":
        """Builds the stage; it holds no network."""
        return cls(settings, context.loss_options, context.mean_over_ranks)

    def forward(self, model: DenseModel, batch: Batch, generator: torch.Generator) -> StageOutput:
        """Returns loss and log of a micro-batch; nothing is drawn from `generator`."""
        count, mean_over_ranks = len(batch.labeled_image), self.mean_over_ranks
        image = model.preprocessing.normalise(at_least_one(batch.labeled_image))  # [l 3 h w]
        prediction = model(image).map[:count]  # [l h w]
        loss, values = weighted_terms(
            self.settings.terms,
            prediction,
            batch.target,
            batch.mask,
            mean_over_ranks=mean_over_ranks,
            **self.loss_options,
        )
        images = StageImages(
            batch.labeled_image, batch.labeled_image, batch.target, batch.mask, prediction.detach()
        )
        scalars = {"loss/labeled": loss, "zero_outputs": zero_fraction(prediction, mean_over_ranks)}
        scalars |= term_scalars("labeled", values)
        return StageOutput(loss, scalars if batch.all_counts[0] else {}, {"labeled": images})
