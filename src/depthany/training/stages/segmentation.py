"""Segmentation: a model learns the class of each pixel from labeled images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from depthany.data.batch import Batch
from depthany.data.class_crops import ClassCrops
from depthany.data.labeled_options import LabeledOptions
from depthany.losses.class_losses import OHEM_LEAST, OHEM_THRESHOLD
from depthany.losses.reduce import MeanOverRanks, one_if_zero
from depthany.models.model import DenseModel
from depthany.system.rules import setting
from depthany.training.stages.base import (
    Needs,
    StageImages,
    StageOutput,
    TermsSettings,
    TermsStage,
    at_least_one,
    term_scalars,
)

BATCH_NORMS = ("trained", "frozen")


@dataclass
class WindowSettings:
    """How validation images go through the model; see `evaluation.protocol.Protocol`."""

    input_size: int | None = setting(None, least=1)
    window: int | None = setting(None, least=1)
    stride: int | None = setting(None, least=1)

    def __post_init__(self) -> None:
        if self.stride is not None and (self.window is None or self.stride > self.window):
            raise ValueError(f"stride={self.stride} window={self.window}: expected stride <= window")


@dataclass
class SegmentationSettings(TermsSettings):
    """configs/stage/segmentation.yaml."""

    ohem_threshold: float = setting(OHEM_THRESHOLD, above=0, most=1)
    ohem_least: int = setting(OHEM_LEAST, least=0)
    batch_norm: str = setting("trained", choices=BATCH_NORMS)
    crops: ClassCrops = field(default_factory=ClassCrops)
    validation: WindowSettings = field(default_factory=WindowSettings)


class SegmentationStage(TermsStage):
    """Losses on class logits of labeled images.

    Source: the linear probe of Oquab et al. 2023 (arXiv 2304.07193) section 7.4, the transfer of Yang et al.
    2024 (arXiv 2401.10891) section 4.5 with the simpler head of UniMatch-V2 (arXiv 2410.10777).
    """

    settings: SegmentationSettings

    Settings = SegmentationSettings
    needs = Needs(labeled=True)
    target, predicts, primary = "classes", "classes", "miou"
    seed_offset = 3_000_017

    @classmethod
    def labeled_options(cls, settings: SegmentationSettings, sets: Sequence[str]) -> LabeledOptions:
        """Returns the crops of labeled images."""
        return LabeledOptions(sets=sets, crops=settings.crops)

    @classmethod
    def validation_input(cls, settings: SegmentationSettings) -> Mapping[str, Any]:
        """Returns size and windows of validation images."""
        return {name: value for name, value in vars(settings.validation).items() if value is not None}

    def forward(self, model: DenseModel, batch: Batch, generator: torch.Generator) -> StageOutput:
        """Returns loss and log of a micro-batch; `generator` (on the CPU) decides what dropout drops."""
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        count = len(batch.labeled_image)
        if self.settings.batch_norm == "frozen" or count < model.head.least_images:
            keep_statistics(model)  # too few images for statistics of their own, or configured so
        image = model.preprocessing.normalise(at_least_one(batch.labeled_image))  # [l 3 h w]
        logits = model(image).map[:count]  # [l k h w]
        hard = {"ohem_threshold": self.settings.ohem_threshold, "ohem_least": self.settings.ohem_least}
        loss, values = self.weighted_loss(logits, batch.target, batch.mask, **hard)
        scalars = {"loss/labeled": loss, **term_scalars("labeled", values)}
        scalars |= scores_of_classes(logits, batch, self.mean_over_ranks)
        seen = batch.labeled_image
        colours = model.quantity.class_colours
        images = StageImages(
            seen, seen, batch.target, batch.mask, logits.detach(), kind="classes", colours=colours
        )
        model.train(model.training)  # as the loop expects it
        return StageOutput(loss, scalars if batch.all_counts[0] else {}, {"labeled": images})


def keep_statistics(model: torch.nn.Module) -> None:
    """Lets all BatchNorm layers normalise by their running statistics and keep them, until `train()`."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


@torch.no_grad()
def scores_of_classes(logits: Tensor, batch: Batch, mean_over_ranks: MeanOverRanks) -> dict[str, Tensor]:
    """Returns the share [] of known pixels whose class is right, and the share of pixels that are known.

    Args:
        logits: [l k h w].
    """
    known = batch.mask.sum()
    right = (logits.argmax(1) == batch.target) & batch.mask if len(logits) else batch.mask
    pixels = torch.full_like(known, batch.mask.numel())
    return {
        "train/pixel_accuracy": right.sum() / one_if_zero(mean_over_ranks(known)),
        "train/known_pixels": known / one_if_zero(mean_over_ranks(pixels)),
    }
