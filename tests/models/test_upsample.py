"""Resizing whose gradient is two products: values and gradients are those of torch's interpolation."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from depthany.models.upsample import resize, resize_by_products, weights

CPU = torch.device("cpu")
CASES = [((2, 5, 9, 7), (18, 13)), ((1, 3, 1, 4), (3, 1)), ((1, 3, 6, 4), (2, 9)), ((2, 1, 37, 37), (74, 74))]


def value_and_gradient(function: Any, cells: torch.Tensor, size: tuple[int, int]) -> list[torch.Tensor]:
    leaf = cells.clone(memory_format=torch.preserve_format).requires_grad_()
    result = function(leaf, size)
    result.backward(torch.arange(result.numel()).sin().view_as(result).to(cells.dtype))
    return [result.detach(), leaf.grad]


def interpolate(cells: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(cells, size, mode="bilinear", align_corners=True)


@pytest.mark.parametrize("shape, size", CASES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_torchs(shape: Any, size: tuple[int, int], layout: Any) -> None:
    cells = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(memory_format=layout)
    expected, found = (value_and_gradient(each, cells, size) for each in (interpolate, resize_by_products))
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-5)
    assert found[1].is_contiguous(memory_format=layout)


def test_channels_last_gradient_takes_the_other_products() -> None:
    cells = torch.randn(2, 5, 9, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    expected = torch.autograd.grad(interpolate(cells, (18, 13)).sin().sum(), cells)[0]
    last = resize_by_products(cells, (18, 13)).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(
        torch.autograd.grad(last.sin().sum(), cells)[0], expected, rtol=1e-5, atol=1e-5
    )


def test_bfloat16_gradient_is_near() -> None:
    cells = torch.randn(1, 4, 9, 9, generator=torch.Generator().manual_seed(0))
    both = (cells, cells.bfloat16())
    exact, half = (value_and_gradient(resize_by_products, each, (18, 18))[1] for each in both)
    assert (half.float() - exact).abs().max() < 0.02 * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_of_a_row_add_up_to_1(dtype: torch.dtype) -> None:
    rows = weights(296, 518, CPU, dtype).float()
    assert (rows.sum(1) - 1).abs().max() <= (1e-6 if dtype == torch.float32 else 0)
    assert (rows > 0).sum(1).max() == 2


def test_cpu_keeps_every_bit() -> None:
    cells = torch.randn(1, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    kept, torchs = (value_and_gradient(each, cells, (9, 12)) for each in (resize, interpolate))
    assert all(torch.equal(one, other) for one, other in zip(kept, torchs))


def test_compiles_to_one_graph() -> None:
    cells = torch.randn(1, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(resize_by_products, fullgraph=True, backend="eager")
    found, expected = (value_and_gradient(each, cells, (9, 12)) for each in (compiled, resize_by_products))
    torch.testing.assert_close(found, expected)
