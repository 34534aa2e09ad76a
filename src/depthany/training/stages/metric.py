"""Metric fine-tuning: a model of relative depth learns metres from labeled images."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from depthany.data.batch import Batch
from depthany.data.labeled_options import LabeledOptions
from depthany.data.views import Views
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

DOMAIN_LOGITS = "domain_logits"  # in `Prediction.extra`: [b k] of a model that tells k domains apart


@dataclass
class MetricSettings(TermsSettings):
    """configs/stage/metric.yaml."""

    near_m: float = setting(0.0, least=0)
    far_m: float | None = setting(None, above=0)
    domains: dict[str, str] | None = None
    w_domain: float = setting(100.0, above=0)
    canonical_focal: float | None = setting(None, above=0)
    views: Views = field(default_factory=Views)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.far_m is not None and self.near_m >= self.far_m:
            raise ValueError(f"near_m={self.near_m:g} far_m={self.far_m:g}: expected near_m < far_m")


class MetricStage(TermsStage):
    """Losses on metres of labeled images, whose prediction is resized to the labels where sizes differ.

    Source: Yang et al. 2024 (arXiv 2401.10891) section 4.3 with ZoeDepth (arXiv 2302.12288), and Yang et al.
    2024 (arXiv 2406.09414) section 7.
    """

    settings: MetricSettings

    Settings = MetricSettings
    needs = Needs(labeled=True)
    target, predicts, primary = "depth_m", "depth_m", "abs_rel"
    seed_offset = 2_000_003

    @classmethod
    def labeled_options(cls, settings: MetricSettings, sets: Sequence[str]) -> LabeledOptions:
        """Returns views and ranges of the labeled sets; their domains are those of the head.

        Raises:
            ValueError: `stage.domains` or `stage.views.bottom_centre` name a set that does not exist.
        """
        far_m = float("inf") if settings.far_m is None else settings.far_m
        for key, named in (
            ("domains", settings.domains),
            ("views.bottom_centre", settings.views.bottom_centre),
        ):
            if unknown := [name for name in named or () if name not in sets]:
                raise ValueError(
                    f"stage.{key}.{unknown[0]}: no such labeled set; the sets are {', '.join(sets)}"
                )
        views = settings.views if settings.views != Views() else None
        return LabeledOptions(
            views, sets, near_m=settings.near_m, far_m=far_m, focal_px=settings.canonical_focal
        )

    def forward(self, model: DenseModel, batch: Batch, generator: torch.Generator) -> StageOutput:
        """Returns loss and log of a micro-batch; `generator` (on the CPU) decides what dropout drops."""
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        count = len(batch.labeled_image)
        image = model.preprocessing.normalise(at_least_one(batch.labeled_image))  # [l 3 h w]
        prediction = model(image)
        depth_m = at_label_sizes(prediction.map[:count], batch)  # [l H W]
        loss, values = self.weighted_loss(depth_m, batch.target, batch.mask)
        scalars = {"loss/labeled": loss, **term_scalars("labeled", values)}
        scalars |= scores(depth_m, batch, self.mean_over_ranks)
        logits = (prediction.extra or {}).get(DOMAIN_LOGITS)  # [l k]
        if logits is not None:
            of_domain = self._domain_loss(logits[:count], batch)
            scalars["loss/labeled/domain"] = of_domain
            loss = loss + self.settings.w_domain * of_domain
        seen = batch.labeled_image
        images = StageImages(seen, seen, batch.target, batch.mask, depth_m.detach(), kind="depth_m")
        return StageOutput(loss, scalars if batch.all_counts[0] else {}, {"labeled": images})

    def _domain_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Returns the mean cross-entropy [] of domain logits [l k] over the images of all ranks."""
        assert batch.domain is not None
        total = F.cross_entropy(logits.float(), batch.domain, reduction="sum")
        images = torch.ones_like(batch.domain).sum()
        return total / one_if_zero(self.mean_over_ranks(images))


def at_label_sizes(depth_m: Tensor, batch: Batch) -> Tensor:
    """Returns depth_m [l h w] at the sizes of the labels, [l H W]; smaller maps are padded by their edges.

    The prediction is resized, bilinear with aligned corners, never the labels: sparse ones keep each point.
    """
    if batch.label_hw is None:
        return depth_m
    height, width = batch.target.shape[1:]
    planes = list[Tensor]()
    for i, (h, w) in enumerate(batch.label_hw):
        plane = F.interpolate(depth_m[i][None, None], (h, w), mode="bilinear", align_corners=True)
        planes.append(F.pad(plane, (0, width - w, 0, height - h), mode="replicate")[0, 0])
    return torch.stack(planes) if planes else depth_m.new_zeros(batch.target.shape) + 0 * depth_m.sum()


@torch.no_grad()
def scores(depth_m: Tensor, batch: Batch, mean_over_ranks: MeanOverRanks) -> dict[str, Tensor]:
    """Returns AbsRel and delta1 [] of depth_m [l h w] over the known pixels of a batch, and which share of
    its pixels is known.

    A loss alone does not say whether metres are right: that of V2 does not fall to 0 while scales are wrong.
    """
    mask, known = batch.mask, one_if_zero(mean_over_ranks(batch.mask.sum()))
    predicted, true = torch.where(mask, depth_m.float(), 1), torch.where(mask, batch.target.float(), 1)
    error = torch.where(mask, (predicted - true).abs() / true, 0).sum()
    close = (torch.maximum(predicted, true) < 1.25 * torch.minimum(predicted, true)) & mask
    count = mask.numel() if batch.label_hw is None else sum(h * w for h, w in batch.label_hw)
    pixels = one_if_zero(mean_over_ranks(torch.full_like(known, count)))
    return {
        "train/abs_rel": error / known,
        "train/delta1": close.sum() / known,
        "train/known_pixels": mask.sum() / pixels,
    }
