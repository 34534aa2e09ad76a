"""What the loader hands to a stage: a micro-batch of crops."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from depthany.data.left_out import ImageIssue
from depthany.data.perturb import Share


@dataclass
class Batch:
    """One micro-batch of l labeled and u unlabeled crops, all of the same size.

    labeled_image: [l 3 h w] uint8 RGB.
    target: [l h w] what the stage learns (see `data.targets.TARGETS`): float32, or int64 for classes. Labels
        that keep their own sizes lie in the upper left corner of [l H W]; the mask is False outside them.
    mask: [l h w] bool, True where the target is valid.
    unlabeled_image: [u 3 h w] uint8 RGB.
    issues: images that were left out, and unlabeled images that were converted.
    pseudo_label: [u h w] float32 disparity that a teacher predicted beforehand, of any scale and shift. None
        if the teacher predicts during training.
    share: which of the micro-batch's unlabeled images this process has; None = all.
    counts: labeled and unlabeled images of the micro-batch in all processes; None = those of this process.
    label_hw: height and width of the labels of each labeled image, where they keep their own sizes; None =
        those of the image.
    domain: [l] int64 domain of each labeled image, where the stage has any.
    """

    labeled_image: Tensor
    target: Tensor
    mask: Tensor
    unlabeled_image: Tensor
    issues: list[ImageIssue] = field(default_factory=list)
    pseudo_label: Tensor | None = None
    share: Share | None = None
    counts: tuple[int, int] | None = None
    label_hw: list[tuple[int, int]] | None = None
    domain: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labeled_image) + len(self.unlabeled_image)

    @property
    def all_counts(self) -> tuple[int, int]:
        """Numbers of labeled and unlabeled images of the micro-batch in all processes."""
        return self.counts or (len(self.labeled_image), len(self.unlabeled_image))

    def to(self, device: torch.device) -> "Batch":
        """Returns the batch with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Returns the batch in page-locked memory, from which a GPU copies in the background."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(
            self,
            labeled_image=change(self.labeled_image),
            target=change(self.target),
            mask=change(self.mask),
            unlabeled_image=change(self.unlabeled_image),
            pseudo_label=None if self.pseudo_label is None else change(self.pseudo_label),
            domain=None if self.domain is None else change(self.domain),
        )


@dataclass(frozen=True)
class BadFile:
    """What a loader process sends instead of a batch if an image is unusable; the training process raises
    it.
    """

    message: str
