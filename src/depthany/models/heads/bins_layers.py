"""Layers of metric bins, which the heads `metric_bins` and `metric_bins_nk` share.

Source: Bhat et al. 2023, ZoeDepth (arXiv 2302.12288) 3.2 and 3.3, in the form of the released code, whose
weights fit. All layers are 1x1 convolutions; maps are [b h w c] here, with the channels of a pixel side by
side, so that they are matrix products. Numbers that are metres, or decide about them, are float32.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MLPWeights(NamedTuple):
    """Weights of two 1x1 convolutions: [o i 1 1] and [o] for all images, or [b o i 1 1] and [b o]."""

    first: Tensor
    first_bias: Tensor
    last: Tensor
    last_bias: Tensor


class PixelMLP(nn.Sequential):
    """Two 1x1 convolutions with an activation between them."""

    def __init__(
        self, channels: int, hidden: int, out: int, activation: Callable[[], nn.Module] = nn.ReLU
    ) -> None:
        super().__init__(nn.Conv2d(channels, hidden, 1), activation(), nn.Conv2d(hidden, out, 1))

    def weights(self) -> MLPWeights:
        """Returns the weights for all images."""
        return MLPWeights(
            *(self.get_parameter(name) for name in ("0.weight", "0.bias", "2.weight", "2.bias"))
        )


class BinWeights(NamedTuple):
    """Weights of a `BinSet`."""

    seed: MLPWeights
    attractors: tuple[MLPWeights, ...]
    log_binomial: MLPWeights


class BinSet(nn.Module):
    """What belongs to one range of depth: seed bins, attractors, and the distribution over the bins.

    Args:
        features: channels of the bottleneck.
        hidden: hidden channels of the seed bins.
        n_bins: bins per pixel.
        points: channels of the attractor points of each level, coarsest first.
        embed_dim: channels of the embeddings.
        pixel_channels: channels of the full-resolution features.
        factor: inputs of the distribution per hidden channel.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        n_bins: int,
        points: Sequence[int],
        embed_dim: int,
        pixel_channels: int,
        factor: int,
    ) -> None:
        super().__init__()
        self.seed = PixelMLP(features, hidden, n_bins)
        self.attractors = nn.ModuleList(PixelMLP(embed_dim, embed_dim, count) for count in points)
        inputs = pixel_channels + embed_dim
        self.log_binomial = PixelMLP(inputs, inputs // factor, 4, nn.GELU)

    def weights(self) -> BinWeights:
        """Returns the weights for all images."""
        attractors = tuple(layer.weights() for layer in self.attractors)  # type: ignore[operator]
        return BinWeights(self.seed.weights(), attractors, self.log_binomial.weights())

    def last_layers(self) -> list[nn.Module]:
        """Returns the layers whose outputs are metres, or shares of the range, or decide about bins."""
        return [layers.get_submodule("2") for layers in (self.seed, *self.attractors, self.log_binomial)]


def weights_of_each_image(sets: Sequence[BinSet], choice: Tensor) -> BinWeights:
    """Returns for each image the weights of the set that is chosen for it.

    Args:
        choice: [b] int64, positions in `sets`.
    """

    def chosen(same_layer: Sequence[MLPWeights]) -> MLPWeights:
        return MLPWeights(*(torch.stack(tensors)[choice] for tensors in zip(*same_layer)))

    weights = [each.weights() for each in sets]
    levels = zip(*(each.attractors for each in weights))
    return BinWeights(
        chosen([each.seed for each in weights]),
        tuple(chosen(level) for level in levels),
        chosen([each.log_binomial for each in weights]),
    )


def pixels_of(x: Tensor) -> Tensor:
    """Returns a map [b c h w] as [b h w c]; no copy."""
    return x.permute(0, 2, 3, 1)


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Returns x [b h w c] resized to `size` (h, w), bilinear with aligned corners."""
    height, width = size
    maps = x.permute(0, 3, 1, 2)
    return pixels_of(F.interpolate(maps, (height, width), mode="bilinear", align_corners=True))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Applies a 1x1 convolution to x [b h w i]; returns [b h w o].

    Args:
        weight, bias: [o i 1 1] and [o], or [b o i 1 1] and [b o] with weights of its own for each image.
    """
    if weight.ndim == 4:
        return F.linear(x, weight.flatten(1), bias)
    result = (x.flatten(1, 2) @ weight.flatten(2).transpose(1, 2)).unflatten(1, x.shape[1:3])
    return result if bias is None else result + bias[:, None, None].to(result.dtype)


def last_in_float32(hidden: Tensor, weights: MLPWeights) -> Tensor:
    """Applies the last layer of an MLP to [b h w c], in float32 or, where its weights are, in float64."""
    dtype = torch.promote_types(weights.last.dtype, torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        return linear(hidden.to(dtype), weights.last.to(dtype), weights.last_bias.to(dtype))


def mlp(x: Tensor, weights: MLPWeights) -> Tensor:
    """Applies an MLP with ReLU to x [b h w c]."""
    hidden = F.relu(linear(x, weights.first, weights.first_bias), inplace=True)
    return linear(hidden, weights.last, weights.last_bias)


def mlp_in_float32(x: Tensor, weights: MLPWeights) -> Tensor:
    """Applies an MLP with ReLU to x [b h w c]; the last layer computes as `last_in_float32`."""
    return last_in_float32(F.relu(linear(x, weights.first, weights.first_bias), inplace=True), weights)
