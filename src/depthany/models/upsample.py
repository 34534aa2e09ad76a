"""Bilinear resizing whose gradient is two matrix products, for devices that would scatter it.

torch's own backward pass adds each gradient into four cells with atomic operations: slow on a GPU, and in an
order that changes from run to run. Resizing is a product with one matrix for the rows and one for the
columns, so its gradient is a product with their transposes, which a GPU has in a fraction of the time and in
a fixed order.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns x [b c h w] resized to `size` (h, w), bilinear, the corners aligned.

    Values are those of torch's `interpolate`. On a CPU so is the gradient; elsewhere it differs by rounding.
    """
    if x.device.type == "cpu" or not x.requires_grad or not torch.is_grad_enabled():
        return F.interpolate(x, size, mode="bilinear", align_corners=True)
    return resize_by_products(x, size)


def resize_by_products(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes x [b c h w] as `resize` does, with products in the backward pass on every device."""
    resized: Tensor = _Resize.apply(x, size)
    return resized


class _Resize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, size: tuple[int, int]) -> Tensor:
        ctx.cells = x.shape[2], x.shape[3]
        return F.interpolate(x, size, mode="bilinear", align_corners=True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (h, w), (height, width) = ctx.cells, gradient.shape[2:]
        device, dtype = gradient.device, gradient.dtype
        rows, columns = weights(h, height, device, dtype), weights(w, width, device, dtype)
        return resized_back(gradient, rows, columns), None


def resized_back(gradient: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Returns the gradient [b c h w] of what was resized, in the memory format of `gradient`.

    Args:
        gradient: [b c H W] of the result.
        rows, columns: [H h] and [W w], see `weights`.
    """
    b, c, height, width = gradient.shape
    h, w = rows.shape[1], columns.shape[1]
    if gradient.is_contiguous(memory_format=torch.channels_last) and not gradient.is_contiguous():
        pixels = gradient.permute(0, 2, 3, 1)  # [b H W c]
        short = torch.matmul(rows.T, pixels.reshape(b, height, width * c))  # [b h W*c]
        cells = torch.matmul(columns.T, short.reshape(b * h, width, c))  # [b*h w c]
        return cells.reshape(b, h, w, c).permute(0, 3, 1, 2)
    return torch.matmul(rows.T, torch.matmul(gradient, columns))


def weights(cells: int, target: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Returns [target cells]: the share of each cell in each resized one. A row has two shares.

    They add up to 1 in half precision too: the larger one is rounded, the other one is exactly the rest.
    """
    make = _weights if torch.compiler.is_compiling() else _kept_weights
    return make(cells, target, device, dtype)


def _weights(cells: int, target: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    exact = torch.promote_types(dtype, torch.float32)
    step = (cells - 1) / (target - 1) if target > 1 else 0.0
    place = torch.arange(target, device=device, dtype=exact) * step  # [target] in cells
    distance = (place[:, None] - torch.arange(cells, device=device, dtype=exact)).abs()  # [target cells]
    larger = torch.maximum(1 - distance, distance).clamp(max=1).to(dtype)
    return torch.where(distance <= 0.5, larger, 1 - larger)


_kept_weights = lru_cache(maxsize=64)(_weights)  # a decoder and its head need 8
