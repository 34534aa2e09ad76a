"""The formulas of metric bins: centres, what attracts them, and the expectation over them.

Source: Bhat et al. 2023, ZoeDepth (arXiv 2302.12288), as the released code computes them: its weights were
trained so. Maps are [b h w c], float32 or float64, and to be called outside autocast. The two formulas with
maps of all bins go through blocks of rows, which stay in the cache of a CPU, and have their own backward
passes, which compute again what would fill the memory.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from depthany.models.heads.bins_layers import is_traced, resized, resized_gradient

NORM_EPS = 1e-3  # added to the outputs of a ReLU that become widths or points
MIXTURE_EPS = 1e-4  # added to two outputs before the first one's share is taken
PROBABILITY_EPS = 1e-4  # least probability inside a logarithm
STIRLING_EPS = 1e-7
BLOCK_VALUES = 2**18  # numbers in a map of the rows that are computed together on the CPU: 1 MB


def normed_centers(raw: Tensor) -> Tensor:
    """Returns the centres [b h w k] of adjoining bins that fill 0 to 1.

    Args:
        raw: [b h w k] outputs of the seed bins before their ReLU; their shares are the widths of the bins.
    """
    widths = F.relu(raw) + NORM_EPS
    widths = widths / widths.sum(-1, keepdim=True)
    return widths.cumsum(-1) - widths / 2


def normed_points(raw: Tensor) -> Tensor:
    """Returns n attractor points [b h w n] of raw outputs [b h w 2n], before their ReLU.

    The released code computes the first one's share of each pair, and then takes the first one as it is.
    """
    return F.relu(raw[..., ::2]) + NORM_EPS


def attracted(centers: Tensor, points: Tensor, alpha: float, gamma: int) -> Tensor:
    """Moves each bin centre c by the mean over the attractor points a of d / (1 + alpha d^gamma), d = a - c.

    Source: ZoeDepth eq. 2, the inverse attractor.

    Args:
        centers: [b h w k].
        points: [b h w n], in the unit of the centres.
    """
    if is_traced():  # a graph of few operators
        distance = points[..., None] - centers[..., None, :]  # [b h w n k]
        return centers + (distance / (1 + alpha * distance**gamma)).mean(-2)
    moved: Tensor = _Attracted.apply(centers, points, alpha, gamma)
    return moved


def expected_depth(numbers: Tensor, centers: Tensor, temperatures: tuple[float, float]) -> Tensor:
    """Returns the expected centre [b h w] under a log-binomial distribution over the bins.

    Source: ZoeDepth 3.3: softmax over k of (log C(K-1, k) + k log p + (K-1-k) log(1-p)) / t. The terms that
    are the same for all k are left out, since softmax ignores them.

    Args:
        numbers: [b h w 4] >= 0: p is the first one's share of the first two, and t, from the least to the
            largest temperature, that of the last two.
        centers: [b h' w' k], which are resized to [b h w k].
        temperatures: the least and the largest one.
    """
    low, high = temperatures
    p0, p1, t0, t1 = (numbers + MIXTURE_EPS).unbind(-1)  # [b h w]
    p = p0 / (p0 + p1)
    cold = 1 / (t0 / (t0 + t1) * (high - low) + low)
    odds = torch.log(p.clamp(min=PROBABILITY_EPS)) - torch.log((1 - p).clamp(min=PROBABILITY_EPS))
    height, width = cold.shape[1:]
    if is_traced():
        return _mean(_probabilities(cold, odds * cold, centers.shape[3]), resized(centers, (height, width)))
    taller = resized(centers, (height, centers.shape[2]))  # [b h w' k], so that a row needs no other row
    depth: Tensor = _Expected.apply(cold, odds * cold, taller)
    return depth


def log_coefficients(n_bins: int, like: Tensor) -> Tensor:
    """Returns log C(n_bins - 1, k) [k] by Stirling's approximation, as the released code has it.

    Its type and device are those of `like`, a tensor of any shape.
    """
    k = torch.arange(n_bins, dtype=like.dtype, device=like.device) + STIRLING_EPS
    n = torch.full_like(k, n_bins - 1 + STIRLING_EPS)
    rest = n - k
    return n * torch.log(n) - k * torch.log(k) - rest * torch.log(rest + STIRLING_EPS)


def _row_blocks(row_values: int, *maps: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yields views of maps [b h ...] of some rows each: on the CPU so few that they stay in its cache. Other
    devices, and torch.compile, which would unroll the loop, have all rows at once.

    Args:
        row_values: numbers in a row of the largest map that is computed.
    """
    in_blocks = maps[0].device.type == "cpu" and not torch.compiler.is_compiling()
    rows = max(1, BLOCK_VALUES // row_values) if in_blocks else maps[0].shape[1]
    return zip(*(each.split(rows, dim=1) for each in maps), strict=True)


class _Attracted(torch.autograd.Function):
    """Attraction that goes through rows and points one after the other, and keeps only its inputs."""

    @staticmethod
    def forward(ctx: Any, centers: Tensor, points: Tensor, alpha: float, gamma: int) -> Tensor:
        ctx.save_for_backward(centers, points)
        ctx.alpha, ctx.gamma = alpha, gamma
        moved = torch.empty_like(centers, memory_format=torch.contiguous_format)
        for out, block, attractors in _row_blocks(centers[:, 0].numel(), moved, centers, points):
            pull = torch.zeros_like(out)
            for point in attractors.split(1, dim=-1):
                distance = point - block
                pull.addcdiv_(distance, (distance**gamma).mul_(alpha).add_(1))
            torch.add(block, pull, alpha=1 / points.shape[-1], out=out)
        return moved

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,) = gradients
        centers, points = ctx.saved_tensors
        alpha, gamma, count = ctx.alpha, ctx.gamma, points.shape[-1]
        of_centers = torch.empty_like(centers, memory_format=torch.contiguous_format)
        of_points = torch.empty_like(points, memory_format=torch.contiguous_format)
        maps = (of_centers, of_points, centers, points, gradient)
        for out, out_points, block, attractors, above in _row_blocks(centers[:, 0].numel(), *maps):
            slopes = torch.zeros_like(out)
            for i, point in enumerate(attractors.split(1, dim=-1)):
                power = ((point - block) ** gamma).mul_(alpha)  # alpha d^gamma
                slope = (1 + (1 - gamma) * power).div_(power.add_(1).square_())  # of d / (1 + alpha d^gamma)
                slopes.add_(slope)
                out_points[..., i] = slope.mul_(above).sum(-1)
            torch.mul(slopes.div_(-count).add_(1), above, out=out)
        return of_centers, of_points.div_(count), None, None


def _probabilities(cold: Tensor, tilt: Tensor, n_bins: int) -> Tensor:
    """Returns bin probabilities [b h w k]: softmax of cold log C(K-1, k) + tilt k."""
    log_c, k = _terms(n_bins, cold)
    return (cold[..., None] * log_c).addcmul_(tilt[..., None], k).softmax(-1)


def _mean(probabilities: Tensor, centers: Tensor) -> Tensor:
    """Returns the expected centre [b h w] of probabilities and centres [b h w k]."""
    return (probabilities * centers).sum(-1)


def _terms(n_bins: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Returns log C(n_bins - 1, k) and k, both [n_bins], of the type and device of `like`."""
    return log_coefficients(n_bins, like), torch.arange(n_bins, dtype=like.dtype, device=like.device)


class _Expected(torch.autograd.Function):
    """The expectation row by row, of centres [b h w' k] that are resized to the width of the map.

    The gradient of a logit is its probability times the centre's distance from the mean.
    """

    @staticmethod
    def forward(ctx: Any, cold: Tensor, tilt: Tensor, centers: Tensor) -> Tensor:
        depth = torch.empty_like(cold)
        width, n_bins = cold.shape[2], centers.shape[3]
        maps = (depth, cold, tilt, centers)
        for out, rows_cold, rows_tilt, block in _row_blocks(len(cold) * width * n_bins, *maps):
            wide = resized(block, (block.shape[1], width))
            out.copy_(_mean(_probabilities(rows_cold, rows_tilt, n_bins), wide))
        ctx.save_for_backward(cold, tilt, centers, depth)
        return depth

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cold, tilt, centers, depth = ctx.saved_tensors
        width, n_bins = cold.shape[2], centers.shape[3]
        of_cold, of_tilt = torch.empty_like(cold), torch.empty_like(tilt)
        of_centers = torch.empty_like(centers, memory_format=torch.contiguous_format)
        log_c, k = _terms(n_bins, cold)
        maps = (of_cold, of_tilt, of_centers, cold, tilt, centers, depth, *gradients)
        for out_cold, out_tilt, out_centers, rows_cold, rows_tilt, block, mean, above in _row_blocks(
            len(cold) * width * n_bins, *maps
        ):
            wide = resized(block, (block.shape[1], width))
            of_wide = _probabilities(rows_cold, rows_tilt, n_bins).mul_(above[..., None])
            of_logits = (wide - mean[..., None]).mul_(of_wide)
            out_cold.copy_(of_logits @ log_c)  # two products with a vector are faster than one of two columns
            out_tilt.copy_(of_logits @ k)
            out_centers.copy_(resized_gradient(of_wide, block))
        return of_cold, of_tilt, of_centers
