"""Alignment in disparity: exact recovery, the degenerate cases, and the inversion to metres."""

import numpy as np
import pytest
import torch

from depthany.evaluation.align import align_least_squares, disparity_to_depth


def random_maps(b: int = 4, h: int = 10, w: int = 13):
    prediction, target, draw = torch.rand(3, b, h, w, generator=torch.Generator().manual_seed(0))
    return prediction, target, draw < 0.6


def test_scale_and_shift_of_three_pixels_by_hand():
    # Line through (0, 0) (1, 3) (2, 3): slope 3/2, intercept 1/2.
    prediction, target = torch.tensor([[[0.0, 1, 2]]]), torch.tensor([[[0.0, 3, 3]]])
    scale, shift, solvable = align_least_squares(prediction, target, torch.ones(1, 1, 3, dtype=torch.bool))
    assert scale.item() == pytest.approx(1.5, abs=1e-14)
    assert shift.item() == pytest.approx(0.5, abs=1e-14)
    assert solvable.item()


def test_alignment_equals_numpy_lstsq_image_by_image():
    prediction, target, mask = random_maps()
    scale, shift, _ = align_least_squares(prediction, target, mask)
    for i in range(4):
        x, y = prediction[i][mask[i]].double().numpy(), target[i][mask[i]].double().numpy()
        expected, *_ = np.linalg.lstsq(np.stack([x, np.ones_like(x)], axis=1), y, rcond=None)
        assert [scale[i].item(), shift[i].item()] == pytest.approx(expected.tolist(), rel=1e-10)


def test_an_affine_prediction_is_undone_even_where_float32_sums_would_cancel():
    _, target, mask = random_maps()
    scale, shift, solvable = align_least_squares(4096 + 2 * target.double(), target.double(), mask)
    torch.testing.assert_close(scale, torch.full((4,), 0.5, dtype=torch.float64), rtol=1e-9, atol=0)
    torch.testing.assert_close(shift, torch.full((4,), -2048.0, dtype=torch.float64), rtol=1e-9, atol=0)
    assert solvable.all()


def test_what_stands_off_the_mask_does_not_count():
    prediction, target, mask = random_maps()
    nan = torch.tensor(torch.nan)
    clean = align_least_squares(prediction, target, mask)
    holes = align_least_squares(torch.where(mask, prediction, nan), torch.where(mask, target, nan), mask)
    for expected, value in zip(clean, holes):
        assert torch.equal(value, expected)


@pytest.mark.parametrize("value", [0.0, 0.1, 100.3, 1e6])
def test_a_constant_prediction_gives_the_mean_of_the_target_and_is_flagged(value):
    _, target, mask = random_maps()
    scale, shift, solvable = align_least_squares(torch.full_like(target, value).double() / 3, target, mask)
    assert not solvable.any()
    assert (scale == 0).all()
    for i in range(4):
        assert shift[i].item() == pytest.approx(target[i][mask[i]].double().mean().item())


def test_an_empty_mask_gives_zeros_and_is_flagged():
    prediction, target, mask = random_maps()
    mask[1] = False
    scale, shift, solvable = align_least_squares(prediction, target, mask)
    assert solvable.tolist() == [True, False, True, True]
    assert scale[1] == 0
    assert shift[1] == 0
    assert scale.isfinite().all()


def test_a_reversed_prediction_keeps_its_negative_scale():
    prediction, _, mask = random_maps()
    scale, shift, _ = align_least_squares(1 - prediction.double(), prediction.double(), mask)
    torch.testing.assert_close(scale, -torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(shift, torch.ones(4, dtype=torch.float64))


def test_aligned_disparity_is_held_to_the_range_and_inverted():
    # 2·d - 1 = -1, 0, 0.5, 1, 19 per metre, in 0.1 to 10 m: behind infinity, infinity, 2 m, 1 m, too near.
    prediction = torch.tensor([[[0.0, 0.5, 0.75, 1.0, 10.0]]])
    depth_m = disparity_to_depth(prediction, torch.tensor([2.0]), torch.tensor([-1.0]), 0.1, 10)
    assert depth_m[0, 0].tolist() == pytest.approx([10, 10, 2, 1, 0.1])


def test_each_image_is_aligned_by_its_own_scale_and_shift():
    prediction = torch.ones(2, 1, 1)
    depth_m = disparity_to_depth(prediction, torch.tensor([1.0, 0.1]), torch.tensor([0.0, 0.1]), 1e-3, 80)
    assert depth_m.flatten().tolist() == pytest.approx([1, 5])


def test_wrong_arguments_are_refused():
    prediction, target, mask = random_maps()
    with pytest.raises(ValueError, match="0 to 80 m"):
        disparity_to_depth(prediction, torch.ones(4), torch.zeros(4), 0, 80)
    with pytest.raises(ValueError, match=r"target \(4, 9, 13\)"):
        align_least_squares(prediction, target[:, 1:], mask)
    with pytest.raises(ValueError, match=r"torch\.float32; expected"):
        align_least_squares(prediction, target, mask.float())
