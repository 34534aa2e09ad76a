"""Shift and scale that a loss removes, by hand."""

import torch

from depthany.losses.normalise import by_least_squares, by_median_and_mad, pixel_rows

EPS = 1e-6


def test_median_and_mad_by_hand() -> None:
    # Valid: 1 2 6: median 2, deviations 1 0 4, MAD 5/3. Target 0 3 3: median 3, deviations 3 0 0, MAD 1.
    mask = torch.tensor([[True, True, True, False]])
    prediction, target = torch.tensor([[1.0, 2, 6, 0]]), torch.tensor([[0.0, 3, 3, 0]])
    maps = by_median_and_mad(prediction, target, mask, EPS)
    torch.testing.assert_close(maps.prediction[mask], torch.tensor([-0.6, 0, 2.4]))
    torch.testing.assert_close(maps.target[mask], torch.tensor([-3.0, 0, 0]))
    torch.testing.assert_close(maps.spread, torch.tensor([1.0]))


def test_least_squares_by_hand() -> None:
    # 0 1 2 onto 0 3 3: slope 3/2, mean of the target 2 -> -3/2 0 3/2 against -2 1 1, standard deviation √2.
    mask = torch.tensor([[True, True, True, False]])
    prediction, target = torch.tensor([[0.0, 1, 2, 9]]), torch.tensor([[0.0, 3, 3, 0]])
    maps = by_least_squares(prediction, target, mask, EPS)
    torch.testing.assert_close(maps.prediction[mask], torch.tensor([-1.5, 0, 1.5]))
    torch.testing.assert_close(maps.target[mask], torch.tensor([-2.0, 1, 1]))
    torch.testing.assert_close(maps.spread, torch.tensor([2.0]).sqrt())


def test_pixel_rows_zero_invalid_pixels() -> None:
    mask = torch.tensor([[[True, False], [False, True]]])
    rows = pixel_rows(torch.tensor([[[1.0, torch.nan], [torch.inf, 2.0]]], dtype=torch.bfloat16), mask)
    assert rows.tolist() == [[1.0, 0.0, 0.0, 2.0]]
    assert rows.dtype == torch.float32
