"""Second part: self-distillation as in DINOv2 (Oquab et al. 2023, arXiv 2304.07193), with lightly's losses.

The student's CLS token of a crop predicts the teacher's of another crop (DINO, arXiv 2104.14294), its masked
patch tokens predict the teacher's unmasked ones (iBOT, arXiv 2111.07832), and CLS tokens are spread apart
(KoLeo, arXiv 1806.03198). The teacher is the moving average of the student. A linear layer also predicts
the pixels of masked patches, which keeps what the masked autoencoder has learnt (SimMIM, arXiv 2111.09886).
"""

import copy
import math

import torch
from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
from lightly.models.modules.heads import DINOProjectionHead
from lightly.models.utils import patchify
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from depthany.data.perturb import Perturb
from depthany.models.dinov2 import PATCH, Dinov2
from pretraining.images import ImageStore, random_crops
from pretraining.tokens import SIDE, encode, normalise

GLOBAL_AREA, LOCAL_AREA = (0.35, 1.0), (0.08, 0.35)
LOCAL_SIDE, LOCALS = 56, 4  # pixels, and crops per image
MASKED_IMAGES, MASKED = 0.5, (0.1, 0.5)  # share of the global crops with masked patches, and of their patches
MOMENTUM = 0.992  # of the teacher at the start; it grows to 1 as a cosine
TEMPERATURES = 0.04, 0.07  # of the teacher, reached after the first 30 %
KOLEO, PIXELS = 0.1, 1.0  # weights beside 1 of DINO and iBOT
COLOUR = Perturb(
    brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, jitter_p=0.8, grayscale_p=0.2, blur_p=0.5,
    blur_radius=(0.1, 1.0),
)  # fmt: skip


class Branch(nn.Module):
    """An encoder with the heads of both losses: the student, or the teacher."""

    def __init__(self, encoder: Dinov2, prototypes: int) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.spec.embed_dim
        self.image_head = DINOProjectionHead(width, 1024, 256, prototypes, norm_last_layer=True)
        self.patch_head = DINOProjectionHead(width, 1024, 256, prototypes, norm_last_layer=True)


class SelfDistillation(nn.Module):
    """Student and teacher, and the losses between them."""

    def __init__(self, encoder: Dinov2, prototypes: int = 4096) -> None:
        super().__init__()
        self.student = Branch(encoder, prototypes)
        self.teacher = copy_of(self.student)
        self.mask_token = nn.Parameter(torch.zeros(encoder.spec.embed_dim))
        self.to_pixels = nn.Linear(encoder.spec.embed_dim, 3 * PATCH * PATCH)
        self.dino = DINOLoss(prototypes)
        self.ibot = IBOTPatchLoss(prototypes)
        self.koleo = KoLeoLoss()

    def loss(
        self, store: ImageStore, index: Tensor, progress: float, generator: Generator
    ) -> dict[str, Tensor]:
        """Returns the losses [] by name, weighted.

        Args:
            index: [b] images.
            progress: share of the training that is done, 0..1.
        """
        b = len(index)
        pair = torch.cat([index, index])
        clear = random_crops(store, pair, SIDE, GLOBAL_AREA, generator)  # [2b 3 126 126]
        clear = normalise(COLOUR.colour(clear, generator))
        local = random_crops(store, index.repeat(LOCALS), LOCAL_SIDE, LOCAL_AREA, generator, oversampling=2)
        local = normalise(COLOUR.colour(local, generator))  # [4b 3 56 56]
        mask = drawn_masks(2 * b, (SIDE // PATCH) ** 2, generator).to(clear.device)  # [2b n]
        warmth = min(1.0, progress / 0.3)
        temperature = TEMPERATURES[0] + (TEMPERATURES[1] - TEMPERATURES[0]) * warmth

        with torch.no_grad():
            taught = encode(self.teacher.encoder, self.teacher.encoder.embed(clear))
            taught_images = self.teacher.image_head(taught[:, 0]).float()  # [2b k]
            taught_patches = self.teacher.patch_head(taught[:, 1:][mask]).float()  # [m k]
        embedded = self.student.encoder.embed(clear)
        hidden = self.mask_token.to(embedded.dtype) + self.student.encoder.positions(9, 9)[:, 1:]
        patches = torch.where(mask[..., None], hidden.to(embedded.dtype), embedded[:, 1:])
        seen = encode(self.student.encoder, torch.cat([embedded[:, :1], patches], dim=1))
        seen_local = encode(self.student.encoder, self.student.encoder.embed(local))[:, 0]
        images = self.student.image_head(torch.cat([seen[:, 0], seen_local]))  # [6b k]
        masked = seen[:, 1:][mask]  # [m c]
        patches, guess = self.student.patch_head(masked), self.to_pixels(masked)
        pixels = patchify(clear, PATCH)[mask]  # [m 3*14*14]
        pixels = F.layer_norm(pixels, pixels.shape[-1:])
        with torch.autocast(clear.device.type, enabled=False):
            views = list(images.float().chunk(2 + LOCALS))
            both = seen[:, 0].float().chunk(2)
            grid = mask.unflatten(1, (SIDE // PATCH, SIDE // PATCH))
            return {
                "dino": self.dino(list(taught_images.chunk(2)), views, temperature),
                "ibot": self.ibot(taught_patches, patches.float(), grid, temperature),
                "koleo": KOLEO * sum(self.koleo(part) for part in both) / 2,
                "pixels": PIXELS * F.mse_loss(guess.float(), pixels),
            }

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Moves the teacher towards the student."""
        momentum = 1 - (1 - MOMENTUM) * (math.cos(math.pi * progress) + 1) / 2
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 1 - momentum)

    def result(self) -> Dinov2:
        """Returns the teacher's encoder, which is better than the student's (DINO, figure 6)."""
        return self.teacher.encoder


def copy_of(student: Branch) -> Branch:
    """Returns a copy without gradient."""
    state = student.state_dict()
    teacher = Branch(copy.deepcopy(student.encoder), student.image_head.last_layer.out_features)
    teacher.load_state_dict(state)
    return teacher.requires_grad_(False)


def drawn_masks(b: int, patches: int, generator: Generator) -> Tensor:
    """Returns [b patches] bool: random patches of half of the images, none of the others."""
    share = torch.empty(b, 1).uniform_(*MASKED, generator=generator)
    with_mask = torch.rand(b, 1, generator=generator) < MASKED_IMAGES
    rank = torch.rand(b, patches, generator=generator).argsort(1).argsort(1)
    mask = (rank < (share * patches).round()) & with_mask
    mask[0, 0] = True  # a batch without any mask would have no loss
    return mask
