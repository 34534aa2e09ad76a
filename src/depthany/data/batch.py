"""A micro-batch of views, as the loader hands it to a stage."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from depthany.data.left_out import Note
from depthany.data.perturb import Share


@dataclass
class Batch:
    """One micro-batch: l labeled and u unlabeled images, all cropped to the same square.

    labeled_image: [l 3 h w] uint8. disparity: [l h w] in [0, 1]. mask: [l h w] bool. unlabeled_image: [u 3 h
        w] uint8.
    notes: images that were left out, and unlabeled ones that were converted, with the reason.
    pseudo_label: [u h w] disparity that a teacher gave the unlabeled images beforehand, at any scale and
        shift; None where it does so during training.
    share: which of the unlabeled images of the micro-batch are here; None = all.
    counts: labeled and unlabeled images of the micro-batch with all processes; None = those that are here.
    """

    labeled_image: Tensor
    disparity: Tensor
    mask: Tensor
    unlabeled_image: Tensor
    notes: list[Note] = field(default_factory=list)
    pseudo_label: Tensor | None = None
    share: Share | None = None
    counts: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.labeled_image) + len(self.unlabeled_image)

    @property
    def all_counts(self) -> tuple[int, int]:
        """Labeled and unlabeled images of the micro-batch, with all processes."""
        return self.counts or (len(self.labeled_image), len(self.unlabeled_image))

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, which copies to a GPU in the background."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(
            change(self.labeled_image),
            change(self.disparity),
            change(self.mask),
            change(self.unlabeled_image),
            self.notes,
            None if self.pseudo_label is None else change(self.pseudo_label),
            self.share,
            self.counts,
        )


@dataclass(frozen=True)
class BadFile:
    """Sent by a loader process instead of a batch, so that the training process can say it in one line."""

    message: str
