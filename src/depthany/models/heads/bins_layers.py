"""Layers of metric bins, which the heads `metric_bins` and `metric_bins_nk` share.

Source: Bhat et al. 2023, ZoeDepth (arXiv 2302.12288) 3.2 and 3.3, in the form of the released code, whose
weights fit. All layers are 1x1 convolutions; maps are [b h w c] here, with the channels of a pixel side by
side, so that they are matrix products. Numbers that are metres, or decide about them, are float32.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS_AT_A_TIME = 2048  # of a half-precision map that is copied to float32: 1 MB of 128 channels


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
    """Returns x [b c h w] as [b h w c]; no copy."""
    return x.permute(0, 2, 3, 1)


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Returns x [b h w c] resized to `size` (h, w), bilinear with aligned corners."""
    height, width = size
    maps = x.permute(0, 3, 1, 2)
    if torch.compiler.is_exporting():  # with free sizes the exporter takes minutes for other layouts
        maps = maps.contiguous()
    return pixels_of(F.interpolate(maps, (height, width), mode="bilinear", align_corners=True))


def resized_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """Returns the gradient of x [b h w c] of that of `resized(x, size)`."""
    of_maps = torch.ops.aten.upsample_bilinear2d_backward(
        gradient.permute(0, 3, 1, 2), gradient.shape[1:3], x.permute(0, 3, 1, 2).shape, True
    )
    return pixels_of(of_maps)


def mlp(x: Tensor, weights: MLPWeights, last_in_float32: bool = False) -> Tensor:
    """Applies an MLP with ReLU to x [b h w c].

    Args:
        last_in_float32: compute the last layer outside autocast, in float32 or float64 as `_float32_linear`.
    """
    hidden = F.relu(_linear(_rows(x, weights.first), weights.first, weights.first_bias), inplace=True)
    last = _float32_linear if last_in_float32 else _linear
    return last(hidden, weights.last, weights.last_bias).view(*x.shape[:3], -1)


def mixture_numbers(
    pixels: Tensor, condition: Tensor | None, embedding: Tensor, weights: MLPWeights
) -> Tensor:
    """Returns the four numbers [b h w 4] >= 0 of each pixel's distribution over the bins, in float32.

    The released code concatenates pixels, condition and resized embedding. A 1x1 convolution and an
    interpolation commute (the weights of each interpolated pixel sum to 1), and in this order the convolution
    of the embedding has a third of the pixels and fewer maps are resized.

    Args:
        pixels: [b h w c] features at full resolution.
        condition: [b h w 1], one more feature; None where the MLP has no weights for it.
        embedding: [b h' w' e].
        weights: weights of an MLP with GELU.
    """
    size, first = pixels.shape[:3], weights.first
    channels = (pixels.shape[-1], 0 if condition is None else 1, embedding.shape[-1])
    of_pixels, of_condition, of_embedding = first.split(channels, dim=-3)
    coarse = _linear(_rows(embedding, first), of_embedding, weights.first_bias).view(*embedding.shape[:3], -1)
    hidden = _linear(_rows(pixels, first), of_pixels, None)
    hidden.add_(_rows(resized(coarse, size[1:]), first))  # in place, as the largest maps of the head
    if condition is not None:
        hidden.add_(_linear(_rows(condition, first), of_condition, None))
    numbers = _float32_linear(F.gelu(hidden), weights.last, weights.last_bias)
    with torch.autocast(numbers.device.type, enabled=False):
        return F.softplus(numbers).view(*size, -1)


def is_traced() -> bool:
    """Whether an exporter records the operators: a loop over rows would hold for one size only."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def _rows(x: Tensor, weight: Tensor) -> Tensor:
    """Returns the pixels of x [b h w c] as rows for `_linear`: of all images, or of each one."""
    return x.flatten(0, 2) if weight.ndim == 4 else x.flatten(1, 2)


def _linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Applies a 1x1 convolution to rows: [n i] with weights [o i 1 1], or [b n i] with [b o i 1 1]."""
    if weight.ndim == 4:
        return F.linear(rows, weight.flatten(1), bias)
    result = rows @ weight.flatten(2).transpose(1, 2)  # [b n o]
    return result if bias is None else result + bias[:, None].to(result.dtype)


def _float32_linear(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Computes `_linear` in float32 or, where the weights are, float64."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    with torch.autocast(rows.device.type, enabled=False):
        if rows.dtype == dtype or rows.device.type != "cpu" or torch.compiler.is_compiling() or is_traced():
            return _linear(rows.to(dtype), weight.to(dtype), bias.to(dtype))
        result: Tensor = _Widened.apply(rows, weight.flatten(-3).to(dtype), bias.to(dtype))
        return result


class _Widened(torch.autograd.Function):
    """A linear layer, in the type of its weights, of rows in half precision, of which only blocks are copied
    to that type: rows [n i] with weights [o i] and [o], or [b n i] with [b o i] and [b o]."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight)
        result = weight.new_empty(*rows.shape[:-1], weight.shape[-2])
        for out, block in _row_pairs(result, rows):
            torch.matmul(block.to(weight.dtype), weight.mT, out=out)
        return result.add_(bias if bias.ndim == 1 else bias[:, None])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (gradient,) = gradients
        rows, weight = ctx.saved_tensors
        of_rows, of_weight = torch.empty_like(rows), torch.zeros_like(weight)
        for out, block, above in _row_pairs(of_rows, rows, gradient):
            of_weight += above.mT @ block.to(weight.dtype)
            out.copy_(above @ weight)
        return of_rows, of_weight, gradient.sum(-2)


def _row_pairs(*rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yields views of some rows each of tensors [n i] or [b n i]."""
    return zip(*(each.split(ROWS_AT_A_TIME, dim=-2) for each in rows), strict=True)
