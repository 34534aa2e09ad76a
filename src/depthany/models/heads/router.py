"""Which domain an image is from, such as indoors or outdoors: the router of ZoeDepth-NK."""

import math

import torch
from torch import Tensor, nn

WIDTH, HEADS, FEEDFORWARD, LAYERS = 128, 4, 1024, 4  # of the released router


class DomainRouter(nn.Module):
    """A small transformer over the bottleneck, whose class token says the domain.

    Source: Bhat et al. 2023, ZoeDepth (arXiv 2302.12288) 3.4, with the sizes of the released code.

    Args:
        features: channels F of the bottleneck.
        n_domains: number of domains.
        dropout: share of activations that training drops, drawn from torch's global generator.
    """

    def __init__(self, features: int, n_domains: int, dropout: float) -> None:
        super().__init__()
        self.patches = nn.Conv2d(features, WIDTH, 1)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, FEEDFORWARD, dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.classifier = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, n_domains))

    def forward(self, bottleneck: Tensor) -> Tensor:
        """Returns the logits [b d] of the domains of a bottleneck [b F h w]."""
        tokens = self.patches(bottleneck).flatten(2).transpose(1, 2)  # [b n c]
        tokens = torch.cat([torch.zeros_like(tokens[:, :1]), tokens], dim=1)  # the class token starts at 0
        encoded: Tensor = self.encoder(tokens + positions(tokens))
        logits: Tensor = self.classifier(encoded[:, 0])
        return logits


def positions(tokens: Tensor) -> Tensor:
    """Returns the sine and cosine position embeddings [n c] of tokens [b n c], of the type of the tokens.

    Source: Vaswani et al. 2017, Attention is all you need (arXiv 1706.03762) 3.5, with all sines first.
    """
    n, c = tokens.shape[1:]
    position = torch.arange(n, dtype=torch.float32, device=tokens.device)[:, None]
    index = torch.arange(0, c, 2, dtype=torch.float32, device=tokens.device)
    angle = position * torch.exp(index * (-math.log(10000.0) / c))
    return torch.cat([angle.sin(), angle.cos()], dim=1).to(tokens.dtype)
