"""Stage 2: the student learns from labeled and pseudo-labeled images."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from depthany.data.batch import Batch
from depthany.data.perturb import Perturb
from depthany.losses.features import CENTERS, MEANS_OVER, FeatureAlignment, feature_alignment_loss
from depthany.losses.reduce import MeanOverRanks, on_one_rank
from depthany.models.encoder import Encoder, patch_tokens
from depthany.models.files.weights import load_encoder_weights
from depthany.models.model import DenseModel, build_encoder
from depthany.system.rules import setting
from depthany.training.alignment_watch import ACTING, DISTANCE, KEPT
from depthany.training.stages.base import (
    Needs,
    StageContext,
    StageImages,
    StageOutput,
    TermsSettings,
    TermsStage,
    at_least_one,
    freeze,
    term_scalars,
    zero_fraction,
)

FROZEN_INPUTS = ("perturbed", "clean")


@dataclass
class ImageWeights:
    """Weight of each kind of image, and of feature alignment, in the student's loss."""

    labeled: float = setting(least=0)
    unlabeled: float = setting(least=0)
    feature: float = setting(least=0)


@dataclass
class FeatureAlignmentSettings:
    """Which features are aligned, and how; see configs/stage/student.yaml."""

    alpha: float = setting(least=0, most=2)
    mean_over: str = setting(choices=MEANS_OVER)
    frozen_input: str = setting(choices=FROZEN_INPUTS)
    center: str = setting("none", choices=CENTERS)
    encoder: str | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        if self.weights and not self.encoder:
            raise ValueError(
                "weights belong to another frozen encoder: name its size in encoder, or leave both null for "
                "the student's own start"
            )


@dataclass
class StudentSettings(TermsSettings):
    """configs/stage/student.yaml."""

    teacher: Any = setting()  # see `ModelSource`
    ratio: list[int] = setting(length=2, least=0)
    weights: ImageWeights = field(default_factory=ImageWeights)
    trim: float = setting(least=0, below=1)
    feature_alignment: FeatureAlignmentSettings = field(default_factory=FeatureAlignmentSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not any(self.ratio):
            raise ValueError(f"ratio={list(self.ratio)}: expected two shares, for example [1, 2]")
        labeled, unlabeled = self.ratio
        if labeled and not self.weights.labeled:
            raise ValueError(
                f"ratio={list(self.ratio)} reads labeled images, but weights.labeled=0 learns nothing from "
                "them: set stage.weights.labeled, or stage.ratio=[0,1]"
            )
        if unlabeled and not self.weights.unlabeled and not self.weights.feature:
            raise ValueError(
                f"ratio={list(self.ratio)} reads unlabeled images, but weights.unlabeled=0 and "
                "weights.feature=0 learn nothing from them: set one of them, or stage.ratio=[1,0]"
            )


class StudentStage(TermsStage):
    """Stage 2: labeled images, pseudo-labeled images under perturbation, and feature alignment.

    Source: Yang et al. 2024 (arXiv 2401.10891) sections 3.2 and 3.3.

    Args:
        settings: see configs/stage/student.yaml.
        teacher: labels the clean views; frozen here. None where batches bring their pseudo-labels.
        frozen_encoder: what the features are aligned to; frozen here. None = no feature alignment.
        student_encoder: tells width and stride of the student's tokens; a linear layer on the student's side
            bridges another width.
        perturb: how the student's view differs from the teacher's.
        loss_options, mean_over_ranks: see `weighted_terms`.
    """

    settings: StudentSettings
    Settings = StudentSettings
    needs = Needs(labeled=True, unlabeled=True, teacher=True)
    seed_offset = 1_000_003  # not the teacher's initial decoder
    regions = ("weighted_loss", "feature_loss")

    def __init__(
        self,
        settings: StudentSettings,
        teacher: DenseModel | None,
        frozen_encoder: Encoder | None,
        student_encoder: Encoder,
        perturb: Perturb,
        loss_options: Mapping[str, Any],
        mean_over_ranks: MeanOverRanks = on_one_rank,
    ) -> None:
        super().__init__(settings, loss_options, mean_over_ranks)
        self.perturb, self.teacher = perturb, teacher
        if teacher is not None:
            freeze(teacher)
        self.frozen_encoder: Encoder | None = None
        self.projection: nn.Module = nn.Identity()
        if frozen_encoder is not None:
            freeze(frozen_encoder)
            self.frozen_encoder = frozen_encoder
            strides = student_encoder.strides[-1], frozen_encoder.strides[-1]
            if strides[0] != strides[1]:
                raise ValueError(
                    f"stage.feature_alignment.encoder={frozen_encoder.label} has one token for {strides[1]} "
                    f"pixels a side, the student's {student_encoder.label} for {strides[0]}: choose another "
                    "encoder, or set stage.weights.feature=0"
                )
            student_width, frozen_width = student_encoder.widths[-1], frozen_encoder.widths[-1]
            if frozen_width != student_width:
                self.projection = nn.Linear(student_width, frozen_width)

    @classmethod
    def ratio(cls, settings: StudentSettings) -> tuple[int, int]:
        """Returns `stage.ratio`, the shares of labeled and unlabeled images in a batch."""
        return settings.ratio[0], settings.ratio[1]

    @classmethod
    def weights_files(cls, settings: StudentSettings) -> Mapping[str, str]:
        """Returns the file of the frozen encoder, if one is named."""
        weights = settings.feature_alignment.weights
        return {"feature_alignment.weights": weights} if weights and settings.weights.feature > 0 else {}

    @classmethod
    def build(cls, settings: StudentSettings, context: StageContext) -> "StudentStage":
        """Builds the stage; the frozen encoder is a copy of the student's own start or the one named."""
        alignment, encoder = settings.feature_alignment, context.model.encoder
        frozen_encoder = None
        if settings.weights.feature > 0 and "encoder" in context.model.frozen_parts:
            raise ValueError(
                "model.freeze: a frozen encoder cannot be aligned to another; set stage.weights.feature=0"
            )
        if settings.weights.feature > 0:
            if alignment.encoder is None:
                frozen_encoder = deepcopy(encoder)
            else:
                frozen_encoder = build_encoder({"name": "dinov2", "size": alignment.encoder})
                load_encoder_weights(frozen_encoder, alignment.weights)
        return cls(
            settings,
            context.teacher,
            frozen_encoder,
            encoder,
            context.perturb,
            context.loss_options,
            context.mean_over_ranks,
        )

    def frozen(self) -> dict[str, nn.Module]:
        """Returns the teacher and the frozen encoder, if there are any."""
        networks = {"teacher": self.teacher, "frozen_encoder": self.frozen_encoder}
        return {name: network for name, network in networks.items() if network is not None}

    def trained(self) -> dict[str, nn.Module]:
        """Returns the layer that bridges two widths, where there is one."""
        return {"projection": self.projection} if isinstance(self.projection, nn.Linear) else {}

    def forward(self, model: DenseModel, batch: Batch, generator: torch.Generator) -> StageOutput:
        """Returns loss and log of a micro-batch; `generator` (on the CPU) decides the perturbations."""
        clean = batch.unlabeled_image  # [u 3 h w] uint8
        seen, pseudo_label, pseudo_mask, box_mask, frozen_view = self._perturbed(batch, generator)
        count, u = len(batch.labeled_image), len(clean)
        both = model.preprocessing.normalise(at_least_one(torch.cat([batch.labeled_image, seen])))
        disparity, tokens, _ = model(both, with_features=True)  # [l+u h w], [l+u n c]
        labeled, unlabeled = disparity[:count], disparity[count : count + u]
        trim, weights = self.settings.trim, vars(self.settings.weights)

        losses, values = dict[str, Tensor](), dict[str, dict[str, Tensor]]()
        losses["labeled"], values["labeled"] = self.weighted_loss(labeled, batch.target, batch.mask)
        losses["unlabeled"], values["unlabeled"] = self.weighted_loss(
            unlabeled, pseudo_label, pseudo_mask, box_mask=box_mask, trim=trim
        )
        any_labeled, any_unlabeled = (count > 0 for count in batch.all_counts)
        zeros = zero_fraction(disparity[: len(batch)], self.mean_over_ranks)
        scalars = {"output/zeros": zeros} if any_labeled or any_unlabeled else {}
        distributions = dict[str, Tensor]()
        if self.frozen_encoder is not None:
            # of unlabeled images only: on labeled ones it gains nothing (paper, section 7)
            aligned = self._align(tokens[count : count + u], frozen_view)
            losses["feature"] = aligned.loss
            if any_unlabeled:
                scalars[KEPT] = aligned.kept
                if aligned.acting is not None:
                    scalars[ACTING] = aligned.acting
                distributions[DISTANCE] = aligned.distance
        for name, loss in losses.items():
            if any_labeled if name == "labeled" else any_unlabeled:
                scalars |= {f"loss/{name}": loss, **term_scalars(name, values.get(name, {}))}
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        images = {
            "labeled": StageImages(
                batch.labeled_image, batch.labeled_image, batch.target, batch.mask, labeled.detach()
            ),
            "unlabeled": StageImages(clean, seen, pseudo_label, pseudo_mask, unlabeled.detach()),
        }
        return StageOutput(total, scalars, images, distributions)

    def _align(self, tokens: Tensor, image: Tensor) -> FeatureAlignment:
        """Returns the feature loss of tokens [u n c], and how far they are off.

        Args:
            image: [u 3 h w] uint8, what the frozen encoder sees.
        """
        assert self.frozen_encoder is not None
        with torch.no_grad():
            levels = self.frozen_encoder(self.frozen_encoder.preprocessing.normalise(at_least_one(image)))
            frozen_tokens = patch_tokens(levels[-1])[: len(image)]  # [u n c]
        return self.feature_loss(self.projection(tokens), frozen_tokens)

    def feature_loss(self, tokens: Tensor, frozen_tokens: Tensor) -> FeatureAlignment:
        """Returns the feature loss of `tokens` [u n c], aligned to `frozen_tokens` [u n c]."""
        alignment = self.settings.feature_alignment
        return feature_alignment_loss(
            tokens,
            frozen_tokens,
            alpha=alignment.alpha,
            mean_over=alignment.mean_over,
            center=alignment.center,
            mean_over_ranks=self.mean_over_ranks,
        )

    @torch.no_grad()
    def _perturbed(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Returns what the student sees [u 3 h w] uint8, its pseudo-label, mask and boxes [u h w], and what
        the frozen encoder sees [u 3 h w] uint8: with the same boxes, or its tokens would be of other images.
        """
        pseudo_label = to_unit_range(self._label(batch))  # [u h w] in 0..1
        # CutMix works on distorted images (paper, section 3.2)
        seen = self.perturb.colour(batch.unlabeled_image, generator, batch.share, self.is_compiled)
        everywhere = torch.ones_like(pseudo_label, dtype=torch.bool)
        mixed = pseudo_label, everywhere, generator, batch.share
        if self.frozen_encoder is not None and self.settings.feature_alignment.frozen_input == "clean":
            return self.perturb.cutmix(seen, *mixed, batch.unlabeled_image)
        seen, *labels = self.perturb.cutmix(seen, *mixed)
        return seen, *labels, seen

    def _label(self, batch: Batch) -> Tensor:
        """Returns the disparity [u h w] of the clean views, from the teacher or as it was stored."""
        if self.teacher is not None:
            image = self.teacher.preprocessing.normalise(at_least_one(batch.unlabeled_image))  # [u 3 h w]
            disparity: Tensor = self.teacher(image).map
            return disparity[: len(batch.unlabeled_image)]
        assert batch.pseudo_label is not None
        return batch.pseudo_label


def to_unit_range(disparity: Tensor) -> Tensor:
    """Scales disparity [b h w] to 0..1, each map from its minimum and maximum, as the labels are."""
    low, high = disparity.float().flatten(1).aminmax(dim=1)  # [b]
    return (disparity - low[:, None, None]) / (high - low).clamp(min=1e-6)[:, None, None]
