"""Strided convolutions of narrow images in bfloat16, where oneDNN leaves memory uninitialised."""

import pytest
import torch
from torch import nn

from depthany.models.strided import strided_conv

# kernel, stride, padding, channels; of the coarsest level of DPT, and of the patches.
CONVS = {"halve": (3, 2, 1, 192), "patches": (14, 14, 0, 3)}


def poison_memory() -> None:
    """Leaves NaN in freed memory, as a step of training may."""
    for size in (64, 1000, 5000, 100_000):
        blocks = [torch.full((size,), float("nan")) for _ in range(20)]
        del blocks


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize("cells", [(1, 1), (2, 1), (9, 1), (3, 2), (9, 2), (3, 3)])
def test_narrow_convolution_is_right_in_bfloat16(name: str, cells: tuple[int, int]) -> None:
    kernel, stride, padding, channels = CONVS[name]
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, 192, kernel, stride, padding)
    side = stride if name == "patches" else 1
    image = torch.randn(2, channels, cells[0] * side, cells[1] * side)
    expected = conv(image)
    expected.sum().backward()
    gradient = conv.weight.grad
    conv.zero_grad()
    poison_memory()
    with torch.autocast("cpu", torch.bfloat16):
        found = strided_conv(conv, image)
    poison_memory()
    found.float().sum().backward()
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)
    torch.testing.assert_close(conv.weight.grad, gradient, rtol=0.05, atol=0.2)
    conv.bfloat16()
    poison_memory()
    with torch.inference_mode():
        torch.testing.assert_close(
            strided_conv(conv, image.bfloat16()).float(), expected, rtol=0.05, atol=0.05
        )


def test_wide_and_float32_images_are_not_padded() -> None:
    conv, shapes = nn.Conv2d(3, 4, 3, 2, 1), []
    conv.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape[-2:])))
    strided_conv(conv, torch.zeros(1, 3, 5, 1))
    with torch.autocast("cpu", torch.bfloat16):
        strided_conv(conv, torch.zeros(1, 3, 5, 3))
        strided_conv(conv, torch.zeros(1, 3, 5, 1))
    assert shapes == [(5, 1), (5, 3), (5, 3)]
