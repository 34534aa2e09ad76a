"""The arithmetic of metric bins: layers and functions that the heads `metric_bins` and `metric_bins_nk` share.

Source: Bhat et al. 2023, ZoeDepth (arXiv 2302.12288) 3.2 and 3.3, in the form of the released code, whose
weights fit. Numbers that are metres or decide about them are computed in float32, outside autocast.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH_EPS = 1e-3  # added to the outputs of a ReLU that are normalised
MIXTURE_EPS = 1e-4  # added to each of two outputs of which the first one's share is taken
PROBABILITY_EPS = 1e-4  # least probability inside a logarithm
STIRLING_EPS = 1e-7


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
        return MLPWeights(self[0].weight, self[0].bias, self[2].weight, self[2].bias)


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
        mlps: list[PixelMLP] = [self.seed, *self.attractors, self.log_binomial]  # type: ignore[list-item]
        return [mlp[2] for mlp in mlps]


def weights_of_each_image(sets: Sequence[BinSet], choice: Tensor) -> BinWeights:
    """Returns for each image the weights of the set that is chosen for it.

    Args:
        choice: [b] int64, positions in `sets`.
    """

    def chosen(all_weights: Sequence[MLPWeights]) -> MLPWeights:
        return MLPWeights(*(torch.stack(tensors)[choice] for tensors in zip(*all_weights)))

    all_weights = [each.weights() for each in sets]
    levels = zip(*(weights.attractors for weights in all_weights))
    return BinWeights(
        chosen([weights.seed for weights in all_weights]),
        tuple(chosen(level) for level in levels),
        chosen([weights.log_binomial for weights in all_weights]),
    )


def pixel_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Applies a 1x1 convolution to x [b i h w]; returns [b o h w].

    Args:
        weight, bias: [o i 1 1] and [o], or [b o i 1 1] and [b o] with weights of its own for each image.
    """
    if weight.ndim == 4:
        return F.conv2d(x, weight, bias)
    h, w = x.shape[-2:]
    pixels = x.flatten(2).transpose(1, 2) @ weight.flatten(2).transpose(1, 2)  # [b h*w o]
    if bias is not None:
        pixels = pixels + bias[:, None].to(pixels.dtype)
    return pixels.transpose(1, 2).unflatten(2, (h, w))


def last_in_float32(hidden: Tensor, weights: MLPWeights) -> Tensor:
    """Applies the last convolution of an MLP to [b c h w], in float32 or, where the weights are, float64."""
    dtype = torch.promote_types(weights.last.dtype, torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        return pixel_conv(hidden.to(dtype), weights.last.to(dtype), weights.last_bias.to(dtype))


def mlp_in_float32(x: Tensor, weights: MLPWeights) -> Tensor:
    """Applies an MLP with ReLU to x [b c h w]; the last convolution computes as `last_in_float32`."""
    return last_in_float32(F.relu(pixel_conv(x, weights.first, weights.first_bias), inplace=True), weights)


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Returns x [b c h w] resized to `size` (h, w), bilinear with aligned corners."""
    height, width = size
    return F.interpolate(x, (height, width), mode="bilinear", align_corners=True)


def normed_centers(raw: Tensor) -> Tensor:
    """Returns the centres [b k h w] of adjoining bins that fill 0 to 1.

    Args:
        raw: [b k h w] outputs of the seed bins before their ReLU; their shares are the widths of the bins.
    """
    widths = F.relu(raw) + WIDTH_EPS
    widths = widths / widths.sum(1, keepdim=True)
    return widths.cumsum(1) - widths / 2


def normed_points(raw: Tensor) -> Tensor:
    """Returns n attractor points [b n h w] of raw outputs [b 2n h w], before their ReLU.

    The released code computes the first one's share of each pair, and then takes the first one as it is. Its
    weights were trained so.
    """
    return F.relu(raw[:, ::2]) + WIDTH_EPS


def attracted(centers: Tensor, points: Tensor, alpha: float, gamma: int) -> Tensor:
    """Moves each bin centre c by the mean over the attractor points a of (a - c) / (1 + alpha (a - c)^gamma).

    Source: ZoeDepth (arXiv 2302.12288) eq. 2, the inverse attractor.

    Args:
        centers: [b k h w].
        points: [b n h w], in the unit of the centres.
    """
    pull = torch.zeros_like(centers)
    for point in points.split(1, dim=1):  # one after the other: n x k maps would not fit the memory
        distance = point - centers
        pull = pull + distance / (1 + alpha * distance**gamma)
    return centers + pull / points.shape[1]


def log_coefficients(n_bins: int, like: Tensor) -> Tensor:
    """Returns log C(n_bins - 1, k) [k 1 1] by Stirling's approximation, as the released code has it."""
    k = torch.arange(n_bins, dtype=like.dtype, device=like.device) + STIRLING_EPS
    n = n_bins - 1 + STIRLING_EPS
    rest = n - k
    terms = torch.log(torch.full_like(k, n)) * n - k * torch.log(k) - rest * torch.log(rest + STIRLING_EPS)
    return terms[:, None, None]


def expected_depth(numbers: Tensor, centers: Tensor, temperatures: tuple[float, float]) -> Tensor:
    """Returns the expected centre [b h w] under a log-binomial distribution over the bins.

    Source: ZoeDepth (arXiv 2302.12288) 3.2: softmax over k of (log C(K-1, k) + k log p + (K-1-k) log(1-p)) / t.
    Terms that are the same for all bins are left out: softmax ignores them.

    Args:
        numbers: [b 4 h w] >= 0: p is the first one's share of the first two, and t, from the least to the
            largest temperature, that of the last two.
        centers: [b k h w].
        temperatures: the least and the largest one.
    """
    low, high = temperatures
    numbers = numbers + MIXTURE_EPS
    p = numbers[:, :1] / (numbers[:, :1] + numbers[:, 1:2])  # [b 1 h w]
    t = numbers[:, 2:3] / (numbers[:, 2:3] + numbers[:, 3:]) * (high - low) + low
    odds = torch.log(p.clamp(min=PROBABILITY_EPS)) - torch.log((1 - p).clamp(min=PROBABILITY_EPS))
    n_bins = centers.shape[1]
    k = torch.arange(n_bins, dtype=numbers.dtype, device=numbers.device)[:, None, None]
    logits = torch.addcmul(log_coefficients(n_bins, numbers) / t, k, odds / t)  # [b k h w]
    return (logits.softmax(1) * centers).sum(1)
