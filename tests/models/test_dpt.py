"""DPT decoder with the relative head: shapes as released, and an output that stays alive from scratch."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depthany.models.dpt import DPT, Fusion, ResidualUnit
from depthany.models.heads.head import float32_conv
from depthany.models.heads.relative import RelativeHead

WIDTHS = (12, 24, 48, 96)


class Decoder(nn.Module):
    """DPT on patches of 14 pixels, with the relative head on top."""

    def __init__(self) -> None:
        super().__init__()
        self.dpt = DPT(widths=(96,) * 4, strides=(14,) * 4, features=16, out_channels=WIDTHS)
        self.head = RelativeHead(16)

    def forward(self, levels: list[Tensor]) -> Tensor:
        p, q = levels[0].shape[-2:]
        return self.head(self.dpt(levels), (14 * p, 14 * q)).map


def decoder(seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    return Decoder()


def grids(p: int, q: int, b: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(b, 96, p, q, generator=generator) for _ in range(4)]


def affine_invariant(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error after mean and mean absolute deviation of each image are removed."""

    def unit(x: Tensor) -> Tensor:
        x = x.flatten(1) - x.flatten(1).mean(1, keepdim=True)
        return x / x.abs().mean(1, keepdim=True).clamp_min(1e-6)

    return (unit(prediction) - unit(target)).abs().mean()


@pytest.mark.parametrize(("p", "q"), [(9, 9), (3, 5), (1, 2), (4, 7)])
def test_output_has_14_pixels_per_patch(p: int, q: int) -> None:
    with torch.no_grad():
        disparity = decoder()(grids(p, q))
    assert disparity.shape == (2, 14 * p, 14 * q)
    assert disparity.dtype == torch.float32
    assert disparity.min() >= 0


def test_levels_have_4_2_1_and_half_cells() -> None:
    levels = decoder().dpt.reassemble(grids(5, 6))
    assert [tuple(level.shape[1:]) for level in levels] == [
        (16, 20, 24),
        (16, 10, 12),
        (16, 5, 6),
        (16, 3, 3),
    ]


def test_patch_lands_at_its_row_and_column() -> None:
    dpt = decoder().dpt
    levels = grids(6, 8, b=1)
    moved = [level.clone() for level in levels]
    moved[0][:, :, 2, 5] += 5  # in the finest level only
    change = (dpt.reassemble(moved)[0] - dpt.reassemble(levels)[0]).abs().sum(1)[0]  # [4p 4q]
    rows, columns = change.gt(1e-4).nonzero().T
    assert (rows.min(), rows.max()) == (
        4 * 2 - 1,
        4 * 3,
    )  # its 4 x 4 cells and the 3 x 3 convolution's border
    assert (columns.min(), columns.max()) == (4 * 5 - 1, 4 * 6)


def test_fusion_equals_interpolating_before_its_1x1_convolution() -> None:
    torch.manual_seed(0)
    fusion = Fusion(8, has_skip=True)
    path, level = torch.randn(2, 8, 5, 7), torch.randn(2, 8, 5, 7)
    refined = fusion.unit(path + fusion.skip_unit(level))
    expected = fusion.out_conv(F.interpolate(refined, (9, 13), mode="bilinear", align_corners=True))
    torch.testing.assert_close(fusion(path, level, (9, 13)), expected)


def test_residual_unit_keeps_negative_input() -> None:
    unit = ResidualUnit(4)
    for parameter in unit.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.randn(1, 4, 3, 3)
    assert torch.equal(unit(x), x)


def test_every_parameter_of_the_decoder_gets_a_gradient() -> None:
    net = decoder()
    net(grids(3, 3)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("seed", range(3))
def test_a_fresh_decoder_stays_alive_in_training(seed: int) -> None:
    net = decoder(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    target = torch.rand(4, 42, 42, generator=torch.Generator().manual_seed(seed))
    features = grids(3, 3, b=4)
    for _ in range(30):
        loss = affine_invariant(net(features), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    zeros = (net(features) == 0).float().flatten(1).mean(1)
    assert zeros.max() < 0.5
    assert loss.item() != pytest.approx(1.0, abs=1e-4)


def test_bfloat16_output_is_not_rounded_to_bfloat16() -> None:
    net = decoder()
    with torch.no_grad():
        exact = net(grids(4, 4))
        with torch.autocast("cpu", torch.bfloat16):
            rough = net(grids(4, 4))
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, rough.bfloat16().float())
    spread = (exact - exact.median()).abs().mean()
    assert (rough - exact).abs().mean() < 0.05 * spread  # bfloat16 has steps of 0.008 near 1: over 100 %


def test_channels_last_weights_change_nothing() -> None:
    net = decoder()
    with torch.no_grad():
        before = net(grids(4, 4))
        after = net.to(memory_format=torch.channels_last)(grids(4, 4))
    torch.testing.assert_close(before, after)


@pytest.mark.parametrize("shape", [(2, 32, 126, 168), (1, 32, 518, 518), (1, 32, 3, 20000)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_last_convolution_in_strips_is_the_same(shape: tuple, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(32, 1, 1).requires_grad_(False)
    hidden = torch.randn(shape, generator=draw).to(dtype).to(memory_format=torch.channels_last)
    expected = float32_conv(conv, hidden)
    with torch.inference_mode():
        torch.testing.assert_close(float32_conv(conv, hidden), expected, rtol=1e-6, atol=2e-6)
