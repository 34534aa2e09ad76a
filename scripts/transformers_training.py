"""Training with `transformers` as its user would write it, for the comparison in benchmark_train.py.

torch.optim.AdamW with its defaults except for the learning rate, then `loss.backward()`, `optimizer.step()`,
`optimizer.zero_grad()`. The loss functions are ours: transformers has none for depth. The student's teacher
and frozen encoder are from transformers too, in eval mode under `torch.no_grad()` and the same autocast;
labeled and unlabeled images share one forward pass. Colour jitter, grayscale and blur are torchvision's,
image by image with our strengths; CutMix pastes boxes drawn by our function with `torch.where`.
"""

import tempfile
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from depthany.data.batch import Batch
from depthany.data.perturb import Perturb
from depthany.data.perturb_ops import box_sides, inside
from depthany.losses.affine_invariant import affine_invariant_loss
from depthany.losses.features import feature_alignment_loss
from depthany.models.files.huggingface import save_huggingface
from depthany.models.model import DenseModel
from depthany.models.preprocess import IMAGENET_MEAN, IMAGENET_STD
from depthany.system.device import Compute
from depthany.training.stages.student import to_unit_range


class PlainTraining:
    """Model, frozen networks and optimizer of one contestant.

    Args:
        model: the weights that model, teacher and frozen encoder start from.
        student: train as the student, else as the teacher.
        compute: where and in which number format.
        compiled: pass the networks to `torch.compile`.
    """

    def __init__(self, model: DenseModel, student: bool, compute: Compute, compiled: bool = False) -> None:
        self.compute, self.student = compute, student
        self.net = from_transformers(model).train().to(compute.device)
        perturb = Perturb()
        if student:
            self.teacher = from_transformers(model).eval().requires_grad_(False).to(compute.device)
            self.frozen = from_transformers(model).backbone.eval().requires_grad_(False).to(compute.device)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=5e-6)
        jitter = v2.ColorJitter(perturb.brightness, perturb.contrast, perturb.saturation, perturb.hue)
        self.colour = v2.Compose(
            [
                v2.RandomApply([jitter], perturb.jitter_p),
                v2.RandomGrayscale(perturb.grayscale_p),
                v2.RandomApply([v2.GaussianBlur(13, perturb.blur_radius)], perturb.blur_p),
            ]
        )
        if compiled:
            for network in (self.net, *((self.teacher, self.frozen) if student else ())):
                network.compile()

    def step(self, batch: Batch, number: int) -> Tensor:
        """Takes one step; returns the loss []."""
        generator = torch.Generator().manual_seed(number)
        torch.manual_seed(number)
        amp = self.compute.amp
        with torch.autocast(self.compute.device.type, amp, enabled=amp is not None):
            loss = self.student_loss(batch, generator) if self.student else self.teacher_loss(batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def teacher_loss(self, batch: Batch) -> Tensor:
        """Returns the affine-invariant loss [] of labeled images."""
        prediction = self.net(pixel_values=normalised(batch.labeled_image)).predicted_depth
        return affine_invariant_loss(prediction, batch.target, batch.mask)

    def student_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Returns the mean [] of the three terms."""
        clean, known = batch.unlabeled_image, len(batch.labeled_image)
        with torch.no_grad():
            pseudo = to_unit_range(self.teacher(pixel_values=normalised(clean)).predicted_depth)
            seen = torch.stack([self.colour(image) for image in clean])
            sides = box_sides(len(clean), *clean.shape[-2:], generator)
            box = inside(*sides).to(clean.device)  # [u h w]
            seen = torch.where(box[:, None], seen.flip(0), seen)
            pseudo = torch.where(box, pseudo.flip(0), pseudo)
            frozen = self.frozen(pixel_values=normalised(seen)).feature_maps[-1][:, 1:]
        images = normalised(torch.cat([batch.labeled_image, seen]))
        output = self.net(pixel_values=images, output_hidden_states=True)
        disparity = output.predicted_depth
        tokens = self.net.backbone.layernorm(output.hidden_states[-1])[known:, 1:]
        feature = feature_alignment_loss(tokens, frozen).loss
        labeled = affine_invariant_loss(disparity[:known], batch.target, batch.mask)
        everywhere = torch.ones_like(box)
        unlabeled = affine_invariant_loss(disparity[known:], pseudo, everywhere, box_mask=box, trim=0.1)
        return (labeled + unlabeled + feature) / 3


def normalised(image: Tensor) -> Tensor:
    """Returns the model input [b 3 h w] of uint8 images, scaled as the processor of transformers does."""
    mean, std = (
        torch.tensor(each, device=image.device)[:, None, None] for each in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (image / 255.0 - mean) / std


def from_transformers(model: DenseModel) -> Any:
    """Returns the same model as `DepthAnythingForDepthEstimation` in float32."""
    from transformers import DepthAnythingForDepthEstimation

    with tempfile.TemporaryDirectory() as folder:
        save_huggingface(model, folder)
        return DepthAnythingForDepthEstimation.from_pretrained(folder, dtype=torch.float32)
