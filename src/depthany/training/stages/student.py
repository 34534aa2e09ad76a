"""Stage 2: the student learns from labeled and pseudo-labeled images."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from depthany.data.batch import Batch
from depthany.data.perturb import Perturb
from depthany.losses.affine_invariant import affine_invariant_loss
from depthany.losses.features import feature_alignment_loss
from depthany.losses.reduce import MeanOverRanks, on_one_rank
from depthany.models.encoder import Encoder, patch_tokens
from depthany.models.model import DenseModel
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
        normalisation, reduction, mean_over_ranks: see `affine_invariant_loss`.
    """

    def __init__(
        self,
        teacher: DenseModel | None,
        frozen_encoder: Encoder | None,
        student_width: int,
        perturb: Perturb,
        weights: Mapping[str, float],
        trim: float,
        alpha: float,
        mean_over: str,
        frozen_input: str,
        normalisation: str,
        reduction: str,
        mean_over_ranks: MeanOverRanks = on_one_rank,
    ) -> None:
        super().__init__()
        if frozen_input not in ("perturbed", "clean"):
            raise ValueError(f"unknown frozen_input {frozen_input!r}; choose from perturbed, clean")
        self.teacher = teacher
        if teacher is not None:
            freeze(teacher)
        self.frozen_encoder: Encoder | None = None
        self.projection: nn.Module = nn.Identity()
        if frozen_encoder is not None:
            freeze(frozen_encoder)
            self.frozen_encoder = frozen_encoder
            frozen_width = frozen_encoder.widths[-1]
            if frozen_width != student_width:
                self.projection = nn.Linear(student_width, frozen_width)
        self.perturb, self.weights, self.trim = perturb, dict(weights), trim
        self.alpha, self.mean_over, self.frozen_input = alpha, mean_over, frozen_input
        self.normalisation, self.reduction, self.mean_over_ranks = normalisation, reduction, mean_over_ranks

    def train(self, mode: bool = True) -> "StudentStage":
        """Training mode, except for the frozen networks."""
        super().train(mode)
        for frozen in (self.teacher, self.frozen_encoder):
            if frozen is not None:
                frozen.eval()
        return self

    def forward(self, model: DenseModel, batch: Batch, generator: torch.Generator) -> StageOutput:
        """`generator` (CPU) decides the perturbations."""
        clean = batch.unlabeled_image  # [u 3 h w] uint8
        seen, pseudo, everywhere, box_mask = self._perturbed(batch, generator)
        known, u = len(batch.labeled_image), len(clean)
        both = model.preprocessing.normalise(at_least_one(torch.cat([batch.labeled_image, seen])))
        disparity, tokens, _ = model(both, with_features=True)  # [l+u h w], [l+u n c]
        labeled, unlabeled = disparity[:known], disparity[known : known + u]

        losses = {
            "labeled": affine_invariant_loss(
                labeled,
                batch.disparity,
                batch.mask,
                normalisation=self.normalisation,
                reduction=self.reduction,
                mean_over_ranks=self.mean_over_ranks,
            ),
            "unlabeled": affine_invariant_loss(
                unlabeled,
                pseudo,
                everywhere,
                box_mask=box_mask,
                normalisation=self.normalisation,
                reduction=self.reduction,
                trim=self.trim,
                mean_over_ranks=self.mean_over_ranks,
            ),
        }
        any_labeled, any_unlabeled = (count > 0 for count in batch.all_counts)
        zeros = zero_fraction(disparity[: len(batch)], self.mean_over_ranks)
        parts = {"zero_outputs": zeros} if any_labeled or any_unlabeled else {}
        if self.frozen_encoder is not None:
            frozen_image = seen if self.frozen_input == "perturbed" else clean
            with torch.no_grad():
                normalised = self.frozen_encoder.preprocessing.normalise(at_least_one(frozen_image))
                frozen_tokens = patch_tokens(self.frozen_encoder(normalised)[-1])[:u]  # [u n c]
            # of unlabeled images only: on labeled ones it gains nothing (paper, section 7)
            losses["feature"], kept = feature_alignment_loss(
                self.projection(tokens[known : known + u]),
                frozen_tokens,
                alpha=self.alpha,
                mean_over=self.mean_over,
                mean_over_ranks=self.mean_over_ranks,
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
                batch.labeled_image, batch.labeled_image, batch.disparity, batch.mask, labeled.detach()
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
            image = self.teacher.preprocessing.normalise(at_least_one(batch.unlabeled_image))
            disparity: Tensor = self.teacher(image).map
            return disparity[: len(batch.unlabeled_image)]
        assert batch.pseudo_label is not None
        return batch.pseudo_label


def to_unit_range(disparity: Tensor) -> Tensor:
    """Each map [b h w] min-max normalised to [0, 1], as the labels are."""
    low, high = disparity.float().flatten(1).aminmax(dim=1)  # [b]
    return (disparity - low[:, None, None]) / (high - low).clamp(min=1e-6)[:, None, None]
