"""What both parts do with an encoder."""

import torch
from torch import Tensor

from depthany.models.dinov2 import Dinov2
from depthany.models.preprocess import Preprocessing

SIDE = 126  # pixels per side of a crop: the 9 x 9 patches of vitt's position grid
_PREPROCESSING = Preprocessing()


def encode(encoder: Dinov2, tokens: Tensor) -> Tensor:
    """Returns normalised final tokens [b 1+n c], CLS first, of input tokens [b 1+n c]."""
    encoder.choose_attention(tokens)
    for block in encoder.blocks:
        tokens = block(tokens)
    return encoder.norm(tokens)


def normalise(image: Tensor) -> Tensor:
    """Returns images [b 3 h w] in 0..1 as the encoder expects them."""
    mean = torch.tensor(_PREPROCESSING.mean, device=image.device)[:, None, None]
    std = torch.tensor(_PREPROCESSING.std, device=image.device)[:, None, None]
    return (image - mean) / std
