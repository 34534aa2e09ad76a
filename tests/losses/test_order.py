"""Selection of pixels by rank: the repeatable way agrees with the fast one."""

import torch

from depthany.losses.order import kth_smallest, masked_median, median_by_sort


def test_median_by_hand() -> None:
    values = torch.tensor([[5.0, 1, 9, 3], [4, 4, 2, 8], [7, 7, 7, 7]])
    mask = torch.tensor([[True, True, False, True], [True, True, True, True], [False] * 4])
    assert masked_median(values, mask).tolist() == [[3.0], [4.0], [0.0]]  # the lower middle one; 0 if empty


def test_sorting_gives_the_same_median() -> None:
    draw = torch.Generator().manual_seed(0)
    values = torch.randint(0, 9, (20, 31), generator=draw).float()  # with many equal values
    values[torch.rand(20, 31, generator=draw) < 0.3] = torch.nan
    assert torch.equal(median_by_sort(values), values.nanmedian(1, keepdim=True).values)


def test_sorted_median_sends_gradient_to_one_pixel() -> None:
    values = torch.tensor([[2.0, 1, 2, 2]], requires_grad=True)
    median_by_sort(values).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[1.0, 0, 0, 0]]


def test_kth_smallest_by_hand() -> None:
    values = torch.tensor([[3.0, 1, 2], [torch.inf, 5, -torch.inf]])
    assert kth_smallest(values, 2).tolist() == [[2.0], [5.0]]
