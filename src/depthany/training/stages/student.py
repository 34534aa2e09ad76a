"""Stage 2: the student learns from labeled and pseudo-labeled images."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from depthany.data.batch import Batch
from depthany.data.perturb import Perturb
from depthany.losses.affine_invariant import (
    Normalisation,
    Reduction,
    affine_invariant_loss,
    cutmix_affine_invariant_loss,
)
from depthany.losses.counting import Across, alone
from depthany.losses.features import MeanOver, feature_alignment_loss
from depthany.models.encoder import Encoder
from depthany.models.model import DepthModel
from depthany.models.preprocess import normalise
from depthany.training.stages.base import StageOutput, View, at_least_one, freeze, zero_fraction


class StudentStage(nn.Module):
    """Stage 2: labeled images, pseudo-labeled images under perturbation, and feature alignment (paper, 3.2
    and 3.3).

    Args:
        teacher: labels the clean views; frozen here. None where batches bring their pseudo-labels.
        frozen_encoder: what the features are aligned to; frozen here. None where the feature weight is 0.
        student_width: channels of the student's tokens; a linear layer on the student's side bridges another
            width.
        perturb: how the student's view differs from the teacher's.
        weights: of the terms labeled, unlabeled and feature.
        trim: share of pixels of largest loss left out on pseudo-labels.
        alpha, mean_over: see `feature_alignment_loss`.
        frozen_input: `perturbed` or `clean` view for the frozen encoder.
        normalisation, reduction, across: see `affine_invariant_loss`.
    """

    def __init__(
        self,
        teacher: DepthModel | None,
        frozen_encoder: Encoder | None,
        student_width: int,
        perturb: Perturb,
        weights: Mapping[str, float],
        trim: float,
        alpha: float,
        mean_over: MeanOver,
        frozen_input: str,
        normalisation: Normalisation,
        reduction: Reduction,
        across: Across = alone,
    ) -> None:
        super().__init__()
        if frozen_input not in ("perturbed", "clean"):
            raise ValueError(f"unknown frozen_input {frozen_input!r}; choose from perturbed, clean")
        self.teacher = freeze(teacher) if teacher is not None else None
        self.frozen_encoder: nn.Module | None = None
        self.projection: nn.Module = nn.Identity()
        if frozen_encoder is not None:
            self.frozen_encoder = freeze(frozen_encoder)
            frozen_width = frozen_encoder.spec.embed_dim
            if frozen_width != student_width:
                self.projection = nn.Linear(student_width, frozen_width)
        self.perturb, self.weights, self.trim = perturb, dict(weights), trim
        self.alpha, self.mean_over, self.frozen_input = alpha, mean_over, frozen_input
        self.normalisation, self.reduction, self.across = normalisation, reduction, across

    def train(self, mode: bool = True) -> "StudentStage":
        """Training mode, except for the frozen networks."""
        super().train(mode)
        for frozen in (self.teacher, self.frozen_encoder):
            if frozen is not None:
                frozen.eval()
        return self

    def forward(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> StageOutput:
        """`generator` (CPU) decides the perturbations."""
        clean = batch.unlabeled_image  # [u 3 h w] uint8
        seen, pseudo, everywhere, box_mask = self._perturbed(batch, generator)
        known, u = len(batch.labeled_image), len(clean)
        both = normalise(at_least_one(torch.cat([batch.labeled_image, seen])))
        disparity, tokens = model(both, return_features=True)  # [l+u h w], [l+u n c]
        labeled, unlabeled = disparity[:known], disparity[known : known + u]

        losses = {
            "labeled": affine_invariant_loss(
                labeled,
                batch.target,
                batch.mask,
                normalisation=self.normalisation,
                reduction=self.reduction,
                across=self.across,
            ),
            "unlabeled": cutmix_affine_invariant_loss(
                unlabeled,
                pseudo,
                everywhere,
                box_mask,
                normalisation=self.normalisation,
                reduction=self.reduction,
                trim=self.trim,
                across=self.across,
            ),
        }
        any_labeled, any_unlabeled = (count > 0 for count in batch.all_counts)
        zeros = zero_fraction(disparity[: len(batch)], self.across)
        parts = {"zero_outputs": zeros} if any_labeled or any_unlabeled else {}
        if self.frozen_encoder is not None:
            frozen_image = seen if self.frozen_input == "perturbed" else clean
            with torch.no_grad():
                frozen_tokens = self.frozen_encoder(normalise(at_least_one(frozen_image)))[-1][:u]  # [u n c]
            # of unlabeled images only: on labeled ones it gains nothing (paper, section 7)
            losses["feature"], kept = feature_alignment_loss(
                self.projection(tokens[known : known + u]),
                frozen_tokens,
                alpha=self.alpha,
                mean_over=self.mean_over,
                across=self.across,
            )
            parts |= {"feature_tokens_kept": kept} if any_unlabeled else {}
        total = torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()
        parts |= {
            f"loss/{name}": loss
            for name, loss in losses.items()
            if (any_labeled if name == "labeled" else any_unlabeled)
        }
        views = {
            "labeled": View(
                batch.labeled_image, batch.labeled_image, batch.target, batch.mask, labeled.detach()
            ),
            "unlabeled": View(clean, seen, pseudo, everywhere, unlabeled.detach()),
        }
        return StageOutput(total, parts, views)

    @torch.no_grad()
    def _perturbed(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the student sees [u 3 h w], and its pseudo-label, mask and pasted boxes [u h w]."""
        pseudo = to_unit_range(self._label(batch))
        # CutMix works on distorted images (paper, section 3.2)
        seen = self.perturb.colour(batch.unlabeled_image, generator, batch.share)
        everywhere = torch.ones_like(pseudo, dtype=torch.bool)
        return self.perturb.cutmix(seen, pseudo, everywhere, generator, batch.share)

    def _label(self, batch: Batch) -> Tensor:
        """[u h w] disparity of the clean views, from the teacher or as it was stored."""
        if self.teacher is not None:
            return self.teacher(normalise(at_least_one(batch.unlabeled_image)))[: len(batch.unlabeled_image)]
        assert batch.pseudo_label is not None
        return batch.pseudo_label


def to_unit_range(disparity: Tensor) -> Tensor:
    """Each map [b h w] min-max normalised to [0, 1], as the labels are."""
    low, high = disparity.float().flatten(1).aminmax(dim=1)  # [b]
    return (disparity - low[:, None, None]) / (high - low).clamp(min=1e-6)[:, None, None]
