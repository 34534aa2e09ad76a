"""First part: a masked autoencoder (He et al. 2022, arXiv 2111.06377)."""

import torch
from lightly.models.modules.masked_vision_transformer_decoder_timm import MaskedVisionTransformerDecoderTIMM
from lightly.models.utils import get_at_index, patchify, set_at_index
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from depthany.models.dinov2 import PATCH, Dinov2
from pretraining.images import ImageStore, random_crops
from pretraining.tokens import SIDE, encode, normalise

PATCHES = (SIDE // PATCH) ** 2
MASKED = 0.75  # share of patches that the encoder does not see
AREA = (0.3, 1.0)


class MaskedAutoencoder(nn.Module):
    """An encoder of visible patches and a small decoder that guesses the pixels of the masked ones."""

    def __init__(self, encoder: Dinov2, width: int = 128, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.encoder = encoder
        self.narrow = nn.Linear(encoder.spec.embed_dim, width)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=PATCHES, embed_dim=width, depth=depth, num_heads=heads, num_prefix_tokens=0
        )
        self.to_pixels = nn.Linear(width, 3 * PATCH * PATCH)

    def loss(
        self, store: ImageStore, index: Tensor, progress: float, generator: Generator
    ) -> dict[str, Tensor]:
        """Returns the mean squared error [] over the masked patches, normalised to mean 0 and variance 1.

        Args:
            index: [b] images.
            progress: share of the training that is done; unused.
        """
        image = normalise(random_crops(store, index, SIDE, AREA, generator))  # [b 3 126 126]
        order = torch.rand(len(image), PATCHES, generator=generator).argsort(1).to(image.device)
        masked, keep = order.split([round(MASKED * PATCHES), PATCHES - round(MASKED * PATCHES)], dim=1)
        tokens = self.encoder.embed(image)  # [b 1+81 c]
        visible = torch.cat([tokens[:, :1], get_at_index(tokens[:, 1:], keep)], dim=1)
        visible = self.narrow(encode(self.encoder, visible)[:, 1:])  # [b 20 d]
        canvas = self.decoder.mask_token.to(visible.dtype).expand(len(image), PATCHES, -1)  # [b 81 d]
        decoded = self.decoder(set_at_index(canvas, keep, visible))
        guess = self.to_pixels(get_at_index(decoded, masked))  # [b 61 3*14*14]
        pixels = get_at_index(patchify(image, PATCH), masked)
        return {"pixels": F.mse_loss(guess.float(), F.layer_norm(pixels, pixels.shape[-1:]))}

    def after_step(self, progress: float) -> None:
        """Nothing follows the gradient step."""

    def result(self) -> Dinov2:
        """Returns the encoder."""
        return self.encoder
