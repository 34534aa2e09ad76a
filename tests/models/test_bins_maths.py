"""The formulas of metric bins, by hand and against what autograd makes of them."""

import math

import pytest
import torch
from torch import Tensor

from depthany.models.heads import bins_layers, bins_maths
from depthany.models.heads.bins_maths import attracted, expected_depth, normed_centers, normed_points


def test_attractor_moves_bins_by_hand() -> None:
    centers = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2)
    to_first = [0.1 / (1 + 300 * 0.1**2), -0.9 / (1 + 300 * 0.9**2)]  # of the attractor at 1.1
    to_second = [1.05 / (1 + 300 * 1.05**2), 0.05 / (1 + 300 * 0.05**2)]  # at 2.05
    found = attracted(centers, torch.tensor([1.1, 2.05]).view(1, 1, 1, 2), 300.0, 2).flatten().tolist()
    expected = [c + (a + b) / 2 for c, a, b in zip((1.0, 2.0), to_first, to_second, strict=True)]
    assert found == pytest.approx(expected, abs=1e-6)
    assert found[0] == pytest.approx(1.01408, abs=1e-5)


def test_two_bins_have_the_expectation_by_hand() -> None:
    numbers = torch.tensor([3.0, 1.0, 1.0, 1.0]).view(1, 1, 1, 4)  # p = 3/4, t in the middle of its range
    t = 0.0212 + (50 - 0.0212) / 2
    near_end = 1 / (1 + math.exp(math.log(3) / t))  # softmax of log(1-p) / t and log(p) / t
    found = expected_depth(numbers, torch.tensor([2.0, 6.0]).view(1, 1, 1, 2), (0.0212, 50.0))
    assert found.item() == pytest.approx(2 * near_end + 6 * (1 - near_end), abs=1e-4)
    cold = torch.tensor([3.0, 1.0, 0.0, 1e9]).view(1, 1, 1, 4)  # the smallest temperature decides for p > 1/2
    assert expected_depth(cold, torch.tensor([2.0, 6.0]).view(1, 1, 1, 2), (0.0212, 50.0)).item() == 6.0


def test_normed_bins_fill_the_range() -> None:
    widths = [w / 4.003 for w in (1.001, 3.001, 0.001)]  # of ReLU (1, 3, -5) + .001
    centers = normed_centers(torch.tensor([1.0, 3.0, -5.0]).view(1, 1, 1, 3)).flatten().tolist()
    ends = [widths[0], widths[0] + widths[1], 1.0]
    assert centers == pytest.approx([end - width / 2 for end, width in zip(ends, widths, strict=True)])


def test_normed_points_are_the_first_of_pairs() -> None:
    raw = torch.tensor([0.5, 9.0, -1.0, 9.0]).view(1, 1, 1, 4)
    assert normed_points(raw).flatten().tolist() == pytest.approx([0.501, 0.001])


@pytest.mark.parametrize("gamma", [2, 4])
def test_gradients_of_the_formulas_are_exact(gamma: int) -> None:
    draw = torch.Generator().manual_seed(0)
    centers, points, numbers = (
        torch.rand(1, 2, 2, count, generator=draw, dtype=torch.float64, requires_grad=True)
        for count in (5, 3, 4)
    )
    assert torch.autograd.gradcheck(lambda c, a: attracted(c, a, 300.0, gamma), (centers, points))
    assert torch.autograd.gradcheck(lambda x, c: expected_depth(x, c, (0.0212, 50.0)), (numbers, centers))
    with torch.no_grad():
        assert torch.equal(attracted(centers, points, 300.0, gamma), attracted(centers, points, 300.0, gamma))


@pytest.mark.parametrize("rows", [1, 3])
def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 3, 5), (2, 4, 3, 2), (2, 7, 6, 4))  # centres, points and the numbers of a larger map
    inputs = [torch.rand(*shape, generator=draw, dtype=torch.float64) for shape in shapes]

    def depth(centers: Tensor, points: Tensor, numbers: Tensor) -> Tensor:
        return expected_depth(numbers, attracted(centers, points, 300.0, 2), (0.0212, 50.0))

    with monkeypatch.context() as graph:
        graph.setattr(bins_maths, "is_traced", lambda: True)  # without blocks and own gradients
        whole = depth(*(x.requires_grad_() for x in inputs))
        expected = torch.autograd.grad(whole.square().sum(), inputs)
    monkeypatch.setattr(bins_maths, "BLOCK_VALUES", rows * 2 * 6 * 5)
    found = depth(*inputs)
    torch.testing.assert_close(found, whole)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), inputs), expected)


@pytest.mark.parametrize("images", [(), (2,)], ids=["shared weights", "weights of each image"])
def test_half_precision_rows_are_widened_exactly(monkeypatch: pytest.MonkeyPatch, images: tuple) -> None:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(*images, 7, 6, generator=draw).bfloat16().requires_grad_()
    weight = torch.randn(*images, 4, 6, 1, 1, generator=draw, requires_grad=True)
    bias = torch.randn(*images, 4, generator=draw, requires_grad=True)
    inputs = (rows, weight, bias)
    expected = rows.float() @ weight.flatten(-3).mT + bias.unsqueeze(-2)
    monkeypatch.setattr(bins_layers, "ROWS_AT_A_TIME", 3)
    found = bins_layers._float32_linear(*inputs)
    torch.testing.assert_close(found, expected)
    gradients = torch.autograd.grad(expected.square().sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), inputs), gradients)
