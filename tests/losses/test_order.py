"""Selection of pixels by rank: the way of a GPU agrees with that of a CPU."""

import pytest
import torch

from depthany.losses import difference
from depthany.losses.affine_invariant import affine_invariant_loss
from depthany.losses.difference import _largest_kept, largest_kept_by_rank
from depthany.losses.normalise import NORMALISATIONS, both_by_median_and_mad
from depthany.losses.order import kth_largest, kth_smallest, masked_median, median_by_rank


def rows(n: int, values: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Twenty rows [20 n] with masks of every density; a number of `values` makes many of them equal."""
    draw = torch.Generator().manual_seed(n)
    row = torch.randn(20, n, generator=draw)
    if values is not None:
        row = torch.randint(0, values, (20, n), generator=draw).float()
    mask = torch.rand(20, n, generator=draw) < torch.linspace(0, 1, 20)[:, None]
    return row, mask


@pytest.mark.parametrize("median", [masked_median, median_by_rank])
def test_median_by_hand(median) -> None:
    values = torch.tensor([[5.0, 1, 9, 3], [4, 4, 2, 8], [7, 7, 7, 7]])
    mask = torch.tensor([[True, True, False, True], [True, True, True, True], [False] * 4])
    assert median(values, mask).tolist() == [[3.0], [4.0], [0.0]]  # the lower middle one; 0 if empty


@pytest.mark.parametrize("n", [1, 2, 9, 400])
def test_median_by_rank_equals_nanmedian(n: int) -> None:
    values, mask = rows(n)
    results, gradients = [], []
    for median in (masked_median, median_by_rank):
        leaf = values.clone().requires_grad_()
        results.append(median(leaf, mask))
        results[-1].sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(results[0], results[1])
    assert torch.equal(gradients[0], gradients[1])
    values, mask = rows(n, values=5)
    assert torch.equal(median_by_rank(values, mask), masked_median(values, mask))


def test_first_of_equal_pixels_has_the_gradient() -> None:
    values = torch.tensor([[1.0, 2, 1, 2, 2]], requires_grad=True)
    median_by_rank(values, torch.tensor([[True, False, True, True, True]])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[1.0, 0, 0, 0, 0]]


@pytest.mark.parametrize("mixed", [False, True])
def test_whole_loss_by_rank_is_the_same(mixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    prediction, target = torch.rand(2, 6, 20, 20, generator=draw)
    mask = torch.rand(6, 20, 20, generator=draw) < torch.tensor([0, 0.3, 0.6, 0.9, 1, 1])[:, None, None]
    box = torch.zeros_like(mask)
    box[1:, 3:16, 5:18] = True  # the first image has no box
    results = []
    for rank in (False, True):
        if rank:
            monkeypatch.setitem(NORMALISATIONS, "median_mad", both_by_median_and_mad)
            monkeypatch.setattr(difference, "_largest_kept", largest_kept_by_rank)
        leaf = prediction.clone().requires_grad_()
        box_mask = box if mixed else None
        loss = affine_invariant_loss(leaf, target, mask, box_mask=box_mask, trim=0.1)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("trim", [0.1, 0.5, 0.93])
def test_trimming_by_rank_keeps_the_same_pixels(trim: float) -> None:
    for n, values in ((1, None), (10, None), (400, None), (400, 7)):
        error, used = rows(n, values)
        kept = [used & ~(error > limit(error, used, trim)) for limit in (_largest_kept, largest_kept_by_rank)]
        assert torch.equal(kept[0], kept[1])


def test_kth_value_by_hand() -> None:
    values = torch.tensor([[3.0, 1, 2], [torch.inf, 5, -torch.inf]])
    assert kth_smallest(values, 2).tolist() == [[2.0], [5.0]]
    mask = torch.tensor([[True, True, True], [False, True, True]])
    assert kth_largest(values, mask, torch.tensor([[3], [1]]), 3).tolist() == [[1.0], [5.0]]


def test_selection_by_rank_compiles_to_one_graph() -> None:
    (values, mask), trim = rows(50), 0.2
    for function in (median_by_rank, lambda error, used: largest_kept_by_rank(error, used, trim)):
        compiled = torch.compile(function, fullgraph=True, backend="eager")
        assert torch.equal(compiled(values, mask), function(values, mask))
