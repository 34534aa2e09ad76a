"""Alignment: exact recovery, outliers, degenerate cases, and the inversion to metres."""

import numpy as np
import pytest
import torch

from depthany.metrics.align import (
    METHODS,
    Fit,
    align_least_squares,
    fit,
    inversion_floor,
    is_degenerate,
    to_depth_m,
    to_space,
)


def random_maps(b: int = 4, h: int = 10, w: int = 13):
    prediction, target, draw = torch.rand(3, b, h, w, generator=torch.Generator().manual_seed(0))
    return prediction, target, draw < 0.6


def test_line_of_three_pixels_by_hand():
    # Line through (0, 0) (1, 3) (2, 3): slope 3/2, intercept 1/2.
    prediction, target = torch.tensor([[[0.0, 1, 2]]]), torch.tensor([[[0.0, 3, 3]]])
    scale, shift, solvable = align_least_squares(prediction, target, torch.ones(1, 1, 3, dtype=torch.bool))
    assert scale.item() == pytest.approx(1.5, abs=1e-14)
    assert shift.item() == pytest.approx(0.5, abs=1e-14)
    assert solvable.item()


def test_alignment_equals_numpy_lstsq_per_image():
    prediction, target, mask = random_maps()
    scale, shift, _ = align_least_squares(prediction, target, mask)
    for i in range(4):
        x, y = prediction[i][mask[i]].double().numpy(), target[i][mask[i]].double().numpy()
        expected, *_ = np.linalg.lstsq(np.stack([x, np.ones_like(x)], axis=1), y, rcond=None)
        assert [scale[i].item(), shift[i].item()] == pytest.approx(expected.tolist(), rel=1e-10)


def test_affine_prediction_is_undone_despite_large_offset():
    _, target, mask = random_maps()
    scale, shift, solvable = align_least_squares(4096 + 2 * target.double(), target.double(), mask)
    torch.testing.assert_close(scale, torch.full((4,), 0.5, dtype=torch.float64), rtol=1e-9, atol=0)
    torch.testing.assert_close(shift, torch.full((4,), -2048.0, dtype=torch.float64), rtol=1e-9, atol=0)
    assert solvable.all()


def test_invalid_pixels_do_not_count():
    prediction, target, mask = random_maps()
    nan = torch.tensor(torch.nan)
    clean = align_least_squares(prediction, target, mask)
    holes = align_least_squares(torch.where(mask, prediction, nan), torch.where(mask, target, nan), mask)
    for expected, value in zip(clean, holes):
        assert torch.equal(value, expected)


@pytest.mark.parametrize("value", [0.0, 0.1, 100.3, 1e6])
def test_constant_prediction_fits_mean_and_is_flagged(value):
    _, target, mask = random_maps()
    scale, shift, solvable = align_least_squares(torch.full_like(target, value).double() / 3, target, mask)
    assert not solvable.any()
    assert (scale == 0).all()
    for i in range(4):
        assert shift[i].item() == pytest.approx(target[i][mask[i]].double().mean().item())


def test_empty_mask_gives_zeros_and_is_flagged():
    prediction, target, mask = random_maps()
    mask[1] = False
    scale, shift, solvable = align_least_squares(prediction, target, mask)
    assert solvable.tolist() == [True, False, True, True]
    assert scale[1] == 0
    assert shift[1] == 0
    assert scale.isfinite().all()


def test_reversed_prediction_keeps_negative_scale():
    prediction, _, mask = random_maps()
    scale, shift, _ = align_least_squares(1 - prediction.double(), prediction.double(), mask)
    torch.testing.assert_close(scale, -torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(shift, torch.ones(4, dtype=torch.float64))


def test_aligned_disparity_is_clipped_then_inverted():
    # 2·d - 1 = -1, 0, 0.5, 1, 19 per metre, in 0.1 to 10 m: beyond infinity, infinity, 2 m, 1 m, too near.
    prediction = np.array([0.0, 0.5, 0.75, 1.0, 10.0], np.float32)
    depth_m = to_depth_m(prediction, Fit(2.0, -1.0), "disparity", (0.1, 10))
    assert depth_m.tolist() == pytest.approx([10, 10, 2, 1, 0.1])


def test_aligned_depth_is_clipped_without_inversion():
    depth_m = to_depth_m(np.array([0.0, 1.0, 3.0], np.float32), Fit(4.0, -1.0), "depth", (0.1, 10))
    assert depth_m.tolist() == [0.1, 3.0, 10.0]


def test_wrong_shapes_and_masks_are_refused():
    prediction, target, mask = random_maps()
    with pytest.raises(ValueError, match=r"target \(4, 9, 13\)"):
        align_least_squares(prediction, target[:, 1:], mask)
    with pytest.raises(ValueError, match=r"torch\.float32; expected"):
        align_least_squares(prediction, target, mask.float())


def line(n: int = 500, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """x and y = 0.3 x + 0.2, float32."""
    x = np.random.default_rng(seed).uniform(0, 4, n).astype(np.float32)
    return x, (0.3 * x + 0.2).astype(np.float32)


@pytest.mark.parametrize("pixels", [2, 300, 70_000])
def test_least_squares_on_arrays_equals_tensors(pixels):
    draw = np.random.default_rng(3)
    x, y = draw.uniform(900, 901, pixels).astype(np.float32), draw.uniform(0, 1, pixels).astype(np.float32)
    found = fit("least_squares", x, y)
    every = torch.ones(1, 1, pixels, dtype=torch.bool)
    scale, shift, _ = align_least_squares(
        torch.from_numpy(x)[None, None], torch.from_numpy(y)[None, None], every
    )
    assert [found.scale, found.shift] == pytest.approx([scale.item(), shift.item()], rel=1e-9)


@pytest.mark.parametrize("method", ["least_squares", "robust_l1"])
def test_affine_fits_find_an_exact_line(method):
    found = fit(method, *line())
    assert [found.scale, found.shift] == pytest.approx([0.3, 0.2], abs=1e-6)
    assert found.solvable


def test_outliers_move_least_squares_but_not_robust_l1():
    x, y = line()
    y[::5] *= 30
    found = fit("robust_l1", x, y)
    assert [found.scale, found.shift] == pytest.approx([0.3, 0.2], abs=1e-5)
    assert abs(fit("least_squares", x, y).shift - 0.2) > 0.5


def test_robust_l1_minimises_its_cost():
    draw = np.random.default_rng(5)
    x = draw.integers(0, 20, 300).astype(np.float32)  # many ties
    y = (0.1 * x + draw.exponential(2, 300) + 0.5).round(1).astype(np.float32)
    found = fit("robust_l1", x, y)

    def cost(scale, shift):
        return np.sum(np.abs(scale * x.astype(float) + shift - y) / y)

    least = cost(found.scale, found.shift)
    grid = [
        cost(found.scale + a, found.shift + b) for a in np.linspace(-1, 1, 41) for b in np.linspace(-1, 1, 41)
    ]
    assert least <= min(grid) + 1e-9


def test_median_scaling_by_hand_has_no_shift():
    found = fit("median", np.array([1.0, 2, 9]), np.array([3.0, 5, 4]))
    assert (found.scale, found.shift) == (2.0, 0.0)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"none"}))
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6, -3.0])
def test_constant_prediction_gives_finite_numbers_and_flag(method, value):
    _, y = line()
    found = fit(method, np.full_like(y, value), y)
    assert np.isfinite([found.scale, found.shift]).all()
    has_scale = method == "median" and value > 0  # a constant above 0 has a median scale
    assert found.solvable is has_scale


def test_inversion_floors_at_a_thousandth_of_maximum():
    prediction = np.array([0.0, 0.5, 4.0], np.float32)
    assert to_space(prediction, "disparity", "depth", inversion_floor(prediction)).tolist() == pytest.approx(
        [250, 2, 0.25]
    )
    assert to_space(prediction, "disparity", "disparity", 1.0) is prediction
    nothing = np.zeros(3, np.float32)
    assert to_space(nothing, "disparity", "depth", inversion_floor(nothing)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("method, least", [("least_squares", 3), ("median", 2), ("robust_l1", 3)])
def test_fit_needs_more_pixels_than_parameters(method: str, least: int) -> None:
    ramp = np.linspace(1, 2, 5, dtype=np.float32)
    assert [is_degenerate(method, ramp[:n]) for n in (least - 1, least)] == [True, False]
    assert is_degenerate(method, np.full(9, 0.3, np.float32))
    assert is_degenerate(method, 3 + np.float32(1e-6) * ramp), "a rounding error is no spread"


def test_metres_without_fit_are_never_degenerate() -> None:
    assert not is_degenerate("none", np.full(1, 5.0))
