"""The formulas of metric bins: centres, what attracts them, and the expectation over them.

Source: Bhat et al. 2023, ZoeDepth (arXiv 2302.12288), as the released code computes them: its weights were
trained so. Maps are [b h w c], float32 or float64, and to be called outside autocast. The two formulas with
maps of all bins have their own backward passes, which compute again what would fill the memory.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

NORM_EPS = 1e-3  # added to the outputs of a ReLU that become widths or points
MIXTURE_EPS = 1e-4  # added to each of two outputs of which the first one's share is taken
PROBABILITY_EPS = 1e-4  # least probability inside a logarithm
STIRLING_EPS = 1e-7


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
    if torch.is_grad_enabled() and (centers.requires_grad or points.requires_grad):
        moved: Tensor = _Attracted.apply(centers, points, alpha, gamma)
        return moved
    return _attract(centers, points, alpha, gamma)


def expected_depth(numbers: Tensor, centers: Tensor, temperatures: tuple[float, float]) -> Tensor:
    """Returns the expected centre [b h w] under a log-binomial distribution over the bins.

    Source: ZoeDepth 3.3: softmax over k of (log C(K-1, k) + k log p + (K-1-k) log(1-p)) / t. The terms that
    are the same for all k are left out, since softmax ignores them.

    Args:
        numbers: [b h w 4] >= 0: p is the first one's share of the first two, and t, from the least to the
            largest temperature, that of the last two.
        centers: [b h w k].
        temperatures: the least and the largest one.
    """
    low, high = temperatures
    p0, p1, t0, t1 = (numbers + MIXTURE_EPS).unbind(-1)  # [b h w]
    p = p0 / (p0 + p1)
    cold = 1 / (t0 / (t0 + t1) * (high - low) + low)
    odds = torch.log(p.clamp(min=PROBABILITY_EPS)) - torch.log((1 - p).clamp(min=PROBABILITY_EPS))
    if torch.is_grad_enabled() and (numbers.requires_grad or centers.requires_grad):
        depth: Tensor = _Expected.apply(cold, odds * cold, centers)
        return depth
    return _expect(cold, odds * cold, centers)[0]


def log_coefficients(n_bins: int, like: Tensor) -> Tensor:
    """Returns log C(n_bins - 1, k) [k] by Stirling's approximation, as the released code has it."""
    k = torch.arange(n_bins, dtype=like.dtype, device=like.device) + STIRLING_EPS
    n = torch.full_like(k, n_bins - 1 + STIRLING_EPS)
    rest = n - k
    return n * torch.log(n) - k * torch.log(k) - rest * torch.log(rest + STIRLING_EPS)


def _attract(centers: Tensor, points: Tensor, alpha: float, gamma: int) -> Tensor:
    if torch.compiler.is_exporting():  # a graph of few operators
        distance = points[..., None] - centers[..., None, :]  # [b h w n k]
        return centers + (distance / (1 + alpha * distance**gamma)).mean(-2)
    pull = torch.zeros_like(centers)
    for point in points.split(1, dim=-1):  # one after the other: n maps of k bins would not fit the memory
        distance = point - centers
        pull.addcdiv_(distance, (distance**gamma).mul_(alpha).add_(1))
    return pull.div_(points.shape[-1]).add_(centers)


class _Attracted(torch.autograd.Function):
    """`_attract` with a backward pass that keeps its inputs alone."""

    @staticmethod
    def forward(ctx: Any, centers: Tensor, points: Tensor, alpha: float, gamma: int) -> Tensor:
        ctx.save_for_backward(centers, points)
        ctx.alpha, ctx.gamma = alpha, gamma
        return _attract(centers, points, alpha, gamma)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,) = gradients
        centers, points = ctx.saved_tensors
        alpha, gamma, count = ctx.alpha, ctx.gamma, points.shape[-1]
        slopes, of_points = torch.zeros_like(centers), []
        for point in points.split(1, dim=-1):
            power = ((point - centers) ** gamma).mul_(alpha)  # alpha d^gamma
            slope = (1 + (1 - gamma) * power).div_(power.add_(1).square_())  # of d / (1 + alpha d^gamma)
            slopes.add_(slope)
            of_points.append(slope.mul_(gradient).sum(-1, keepdim=True))
        of_centers = slopes.div_(-count).add_(1).mul_(gradient)
        return of_centers, torch.cat(of_points, dim=-1) / count, None, None


def _expect(cold: Tensor, tilt: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Returns depth [b h w] and bin probabilities [b h w k]: softmax of cold log C(K-1, k) + tilt k."""
    n_bins = centers.shape[-1]
    k = torch.arange(n_bins, dtype=centers.dtype, device=centers.device)
    logits = (cold[..., None] * log_coefficients(n_bins, centers)).addcmul_(tilt[..., None], k)
    probabilities = logits.softmax(-1)
    return (probabilities * centers).sum(-1), probabilities


class _Expected(torch.autograd.Function):
    """`_expect`: the gradient of a logit is its probability times the centre's distance from the mean."""

    @staticmethod
    def forward(ctx: Any, cold: Tensor, tilt: Tensor, centers: Tensor) -> Tensor:
        depth, probabilities = _expect(cold, tilt, centers)
        ctx.save_for_backward(probabilities, centers, depth)
        return depth

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (gradient,) = gradients
        probabilities, centers, depth = ctx.saved_tensors
        of_centers = probabilities * gradient[..., None]
        of_logits = (centers - depth[..., None]).mul_(of_centers)
        n_bins = centers.shape[-1]
        k = torch.arange(n_bins, dtype=centers.dtype, device=centers.device)
        per_number = of_logits @ torch.stack([log_coefficients(n_bins, centers), k], dim=-1)  # [b h w 2]
        return per_number[..., 0], per_number[..., 1], of_centers
