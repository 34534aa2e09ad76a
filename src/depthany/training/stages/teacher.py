"""Stage 1: the teacher learns from labeled images only."""

from dataclasses import dataclass
from pathlib import Path

import torch

from depthany.data.batch import Batch
from depthany.models.model import DenseModel
from depthany.training.next_command import NOTHING, Given, command_line, student_dir
from depthany.training.stages.base import (
    Needs,
    StageImages,
    StageOutput,
    TermsSettings,
    TermsStage,
    at_least_one,
    term_scalars,
    zero_fraction,
)


@dataclass
class TeacherSettings(TermsSettings):
    """configs/stage/teacher.yaml."""


class TeacherStage(TermsStage):
    """Stage 1: losses on labeled images, which are not perturbed (paper, section 3.1)."""

    Settings = TeacherSettings
    needs = Needs(labeled=True)

    @classmethod
    def next_command(cls, run_dir: Path, given: Given = NOTHING) -> str:
        """Returns the command that trains its student on the same data."""
        of_default = run_dir == Path("outputs/teacher")  # which the student takes by default
        folders = [] if of_default else [f"stage.teacher={run_dir}", f"run_dir={student_dir(run_dir)}"]
        return command_line("train", ["stage=student", *given.shared("student"), *given.unlabeled, *folders])

    def forward(self, model: DenseModel, batch: Batch, generator: torch.Generator) -> StageOutput:
        """Returns loss and log of a micro-batch; nothing is drawn from `generator`."""
        count = len(batch.labeled_image)
        image = model.preprocessing.normalise(at_least_one(batch.labeled_image))  # [l 3 h w]
        prediction = model(image).map[:count]  # [l h w]
        loss, values = self.weighted_loss(prediction, batch.target, batch.mask)
        images = StageImages(
            batch.labeled_image, batch.labeled_image, batch.target, batch.mask, prediction.detach()
        )
        scalars = {"loss/labeled": loss, "output/zeros": zero_fraction(prediction, self.mean_over_ranks)}
        scalars |= term_scalars("labeled", values)
        return StageOutput(loss, scalars if batch.all_counts[0] else {}, {"labeled": images})
