"""The losses against hand-computed values, a plain NumPy reference, and the laws they must obey."""

import numpy as np
import pytest
import torch
from loss_batches import SHARES, box_of, everywhere, gradient, losses_of_shares, random_batch, row
from torch import Tensor

from depthany.losses.affine_invariant import affine_invariant_loss
from depthany.losses.difference import REDUCTIONS
from depthany.losses.features import CENTERS, feature_alignment_loss, mean_token
from depthany.losses.normalise import NORMALISATIONS
from depthany.losses.reduce import on_one_rank

# The same losses in float64, one image and one formula at a time, as in the papers.


def reference_errors(prediction: np.ndarray, target: np.ndarray, normalisation: str) -> np.ndarray:
    if normalisation == "least_squares":
        design = np.stack([prediction, np.ones_like(prediction)], axis=1)
        (scale, shift), *_ = np.linalg.lstsq(design, target, rcond=None)
        return 0.5 * (scale * prediction + shift - target) ** 2

    def normalised(disparity: np.ndarray) -> np.ndarray:
        shift = np.sort(disparity)[(len(disparity) - 1) // 2]
        return (disparity - shift) / np.abs(disparity - shift).mean()

    return np.abs(normalised(target) - normalised(prediction))


def reference_loss(
    prediction: Tensor, target: Tensor, mask: Tensor, normalisation: str, reduction: str, trim: float
) -> float:
    per_image = []
    for p, t, m in zip(prediction.double().numpy(), target.double().numpy(), mask.numpy()):
        if m.any():
            errors = np.sort(reference_errors(p[m], t[m], normalisation))
            per_image.append(errors[: len(errors) - int(trim * len(errors))])
    if reduction == "batch":
        return float(np.concatenate(per_image).mean())
    return float(np.mean([errors.mean() for errors in per_image]))


@pytest.mark.parametrize("trim", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_loss_equals_float64_loop_over_images(normalisation, reduction, trim):
    for seed, valid in enumerate([0.03, 0.5, 0.95, 1.1]):
        prediction, target, mask = random_batch(seed, valid=valid)
        mask[2] = False
        loss = affine_invariant_loss(
            prediction, target, mask, normalisation=normalisation, reduction=reduction, trim=trim
        )
        expected = reference_loss(prediction, target, mask, normalisation, reduction, trim)
        assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_median_mad_loss_of_five_pixels():
    # prediction 0 1 2 3 4: median 2, deviations 2 1 0 1 2, MAD 6/5 -> -5/3 -5/6 0 5/6 5/3
    # target     0 0 1 3 6: median 1, deviations 1 1 0 2 5, MAD 9/5 -> -5/9 -5/9 0 10/9 25/9
    # |difference| = 10/9 5/18 0 5/18 10/9, sum 25/9, mean 5/9
    prediction, target = row(0, 1, 2, 3, 4), row(0, 0, 1, 3, 6)
    loss = affine_invariant_loss(prediction, target, everywhere(target))
    assert loss.item() == pytest.approx(5 / 9)


def test_least_squares_loss_of_three_pixels():
    # prediction 0 1 2, target 0 3 3: slope 3/2, intercept 1/2 -> 1/2 2 7/2, residuals 1/2 -1 1/2
    # mean of half their squares = (1/8 + 1/2 + 1/8) / 3 = 1/4
    loss = affine_invariant_loss(
        row(0, 1, 2), row(0, 3, 3), everywhere(row(0, 1, 2)), normalisation="least_squares"
    )
    assert loss.item() == pytest.approx(0.25)


def test_median_ignores_invalid_pixels():
    # Valid are 5 6 9 and 5 8 9. Medians 6 and 8, MADs 4/3 and 4/3: -3/4 0 9/4 against -9/4 0 3/4 -> mean 1.
    # With the four invalid pixels as zeros in the median (the known trap) t = 0, s = 20/3 and 22/3,
    # 0.75 0.9 1.35 against 0.68 1.09 1.23: mean 0.13.
    prediction, target = row(5, 6, 9, 0, 0, 0, 0), row(5, 8, 9, 0, 0, 0, 0)
    loss = affine_invariant_loss(prediction, target, target > 0)
    assert loss.item() == pytest.approx(1.0)


def test_reduction_weighs_pixels_or_images():
    # First image: the hand example above, 5 pixels of mean 5/9. Second: 2 valid pixels in opposite order,
    # lower median 0, MAD 1/2 -> (0 2) against (2 0): mean 2.
    prediction = torch.cat([row(0, 1, 2, 3, 4), row(0, 1, 7, 7, 7)])
    target = torch.cat([row(0, 0, 1, 3, 6), row(1, 0, 9, 5, 1)])
    mask = torch.tensor([[[True] * 5], [[True, True, False, False, False]]])
    batch = affine_invariant_loss(prediction, target, mask, reduction="batch")
    image = affine_invariant_loss(prediction, target, mask, reduction="image")
    assert batch.item() == pytest.approx((5 * 5 / 9 + 2 * 2) / 7)
    assert image.item() == pytest.approx((5 / 9 + 2) / 2)


def test_trim_drops_largest_errors_of_each_image():
    # Errors of the five-pixel example, sorted: 0 5/18 5/18 10/9 10/9; 40 % of five pixels is two.
    prediction, target = row(0, 1, 2, 3, 4), row(0, 0, 1, 3, 6)
    loss = affine_invariant_loss(prediction, target, everywhere(target), trim=0.4)
    assert loss.item() == pytest.approx((5 / 18) * 2 / 3)


def test_trim_removes_one_wild_label_in_fifty():
    # It still stretches the target's deviation, which is why the loss does not fall to zero.
    prediction = torch.arange(50.0).reshape(1, 5, 10)
    target = prediction.clone()
    target[0, 0, 0] = 500
    full = affine_invariant_loss(prediction, target, everywhere(target))
    trimmed = affine_invariant_loss(prediction, target, everywhere(target), trim=0.1)
    assert 0 < trimmed < 0.7 * full


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_loss_ignores_scale_and_shift_of_prediction(normalisation):
    prediction, target, mask = random_batch()
    scale, shift = torch.tensor([0.01, 3, 100, 1]).view(4, 1, 1), torch.tensor([5, -7, 0, 0.1]).view(4, 1, 1)
    loss = affine_invariant_loss(prediction, target, mask, normalisation=normalisation)
    moved = affine_invariant_loss(scale * prediction + shift, target, mask, normalisation=normalisation)
    torch.testing.assert_close(moved, loss, rtol=1e-4, atol=0)


def test_median_mad_loss_ignores_target_scale_and_shift():
    prediction, target, mask = random_batch()
    loss = affine_invariant_loss(prediction, target, mask)
    torch.testing.assert_close(
        affine_invariant_loss(prediction, 8 * target - 3, mask), loss, rtol=1e-5, atol=0
    )


def test_least_squares_loss_keeps_target_scale():
    prediction, target, mask = random_batch()
    loss = affine_invariant_loss(prediction, target, mask, normalisation="least_squares")
    tripled = affine_invariant_loss(prediction, 3 * target, mask, normalisation="least_squares")
    torch.testing.assert_close(tripled, 9 * loss)


def test_loss_distinguishes_near_from_far():
    prediction, _, mask = random_batch()
    assert affine_invariant_loss(-prediction, prediction, mask) > 1
    assert affine_invariant_loss(prediction, prediction, mask) == 0


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_invalid_pixels_change_neither_value_nor_gradient(normalisation, poison):
    prediction, target, mask = random_batch()
    mask[1] = False

    def loss_of(target):
        return lambda p: affine_invariant_loss(p, target, mask, normalisation=normalisation, trim=0.1)

    clean = gradient(loss_of(target), prediction)
    poisoned = gradient(
        loss_of(torch.where(mask, target, poison)), torch.where(mask, prediction, torch.tensor(poison))
    )
    assert clean[0] == poisoned[0]
    assert torch.equal(clean[1], poisoned[1])
    assert clean[1][~mask].abs().max() == 0
    assert clean[1][mask].abs().max() > 0


def test_nan_under_mask_shows_in_loss():
    prediction, target, mask = random_batch(valid=1.1)
    broken = prediction.clone()
    broken[0, 0, 0] = torch.nan
    for trim in (0.0, 0.1):
        assert affine_invariant_loss(broken, target, mask, trim=trim).isnan()
        assert affine_invariant_loss(prediction, broken, mask, trim=trim).isnan()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_uninformative_images_count_for_nothing(normalisation, reduction):
    prediction, target, mask = random_batch()
    mask[0] = False
    target[1] = 0.3

    def loss_of(p):
        return affine_invariant_loss(p, target, mask, normalisation=normalisation, reduction=reduction)

    loss, grad = gradient(loss_of, prediction)
    rest = affine_invariant_loss(
        prediction[2:], target[2:], mask[2:], normalisation=normalisation, reduction=reduction
    )
    torch.testing.assert_close(loss, rest)
    assert grad[:2].abs().max() == 0
    assert grad[2:].abs().max() > 0


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("trim", [0.0, 0.1])
def test_batch_without_valid_pixel_has_zero_gradient(normalisation, reduction, trim):
    prediction, target, mask = random_batch(valid=-1)
    loss, grad = gradient(
        lambda p: affine_invariant_loss(
            p, target, mask, normalisation=normalisation, reduction=reduction, trim=trim
        ),
        prediction,
    )
    assert loss == 0
    assert grad.abs().max() == 0


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_prediction_of_zeros_has_finite_gradient(normalisation):
    _, target, mask = random_batch()
    loss, grad = gradient(
        lambda p: affine_invariant_loss(p, target, mask, normalisation=normalisation),
        torch.zeros_like(target),
    )
    assert loss.isfinite()
    assert loss > 0
    assert grad.isfinite().all()


def test_constant_prediction_has_zero_least_squares_gradient():
    _, target, mask = random_batch()
    loss, grad = gradient(
        lambda p: affine_invariant_loss(p, target, mask, normalisation="least_squares"),
        torch.full_like(target, 100.3),
    )
    assert loss.isfinite()
    assert grad.abs().max() == 0


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_gradient_equals_finite_differences(normalisation, reduction):
    prediction, target, mask = random_batch(b=3, h=3, w=5)
    prediction = prediction.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda p: affine_invariant_loss(
            p, target.double(), mask, normalisation=normalisation, reduction=reduction, trim=0.2
        ),
        prediction,
    )


def test_gradient_is_orthogonal_to_scale_and_shift():
    # Invariance to shift and scale of each image: sum of the gradient and <gradient, prediction> are 0.
    prediction, target, mask = random_batch()
    _, grad = gradient(lambda p: affine_invariant_loss(p, target, mask), prediction.double())
    assert grad.sum((1, 2)).abs().max() < 1e-12
    assert (grad * prediction).sum((1, 2)).abs().max() < 1e-12


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_autocast_to_bfloat16_changes_nothing(normalisation):
    prediction, target, mask = random_batch()
    box_mask = torch.zeros_like(mask)
    box_mask[:, :8, :10] = True
    loss = affine_invariant_loss(prediction, target, mask, normalisation=normalisation)
    mixed = affine_invariant_loss(prediction, target, mask, box_mask=box_mask, normalisation=normalisation)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert affine_invariant_loss(prediction, target, mask, normalisation=normalisation) == loss
        assert (
            affine_invariant_loss(prediction, target, mask, box_mask=box_mask, normalisation=normalisation)
            == mixed
        )
    low = affine_invariant_loss(prediction.bfloat16(), target, mask, normalisation=normalisation)
    assert low == affine_invariant_loss(
        prediction.bfloat16().float(), target, mask, normalisation=normalisation
    )
    assert low.dtype == torch.float32


def test_wrong_arguments_are_refused_with_choices():
    prediction, target, mask = random_batch()
    with pytest.raises(ValueError, match="median_mad, least_squares"):
        affine_invariant_loss(prediction, target, mask, normalisation="minmax")
    with pytest.raises(ValueError, match="batch, image"):
        affine_invariant_loss(prediction, target, mask, reduction="sum")
    with pytest.raises(ValueError, match=r"trim is 1\.0"):
        affine_invariant_loss(prediction, target, mask, trim=1.0)
    with pytest.raises(ValueError, match=r"prediction is float32\(4, 1, 12, 17\)"):
        affine_invariant_loss(prediction[:, None], target, mask)
    with pytest.raises(ValueError, match="bool mask"):
        affine_invariant_loss(prediction, target, mask.float())


# CutMix


@pytest.mark.parametrize("trim", [0.0, 0.1])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("box", ["empty", "whole"])
def test_cutmix_loss_without_box_is_plain_loss(box, normalisation, reduction, trim):
    prediction, target, mask = random_batch()
    options = {"normalisation": normalisation, "reduction": reduction, "trim": trim}
    box_mask = torch.full_like(mask, box == "whole")
    plain = affine_invariant_loss(prediction, target, mask, **options)
    assert affine_invariant_loss(prediction, target, mask, box_mask=box_mask, **options) == plain


def test_sparse_image_without_box_takes_part():
    prediction, target, mask = random_batch(valid=0.05)  # about ten valid pixels an image, fewer than 64
    loss = affine_invariant_loss(prediction, target, mask, box_mask=torch.zeros_like(mask))
    assert loss == affine_invariant_loss(prediction, target, mask)
    assert loss > 0


def test_cutmix_loss_weighs_regions_by_area():
    # Inside: the five-pixel example, mean 5/9. Outside: 0 1 2 against 0 3 1.
    #   0 1 2: median 1, MAD 2/3 -> -3/2 0 3/2;  0 3 1: median 1, MAD 1 -> -1 2 0
    #   |difference| = 1/2 2 3/2, mean 4/3.  Areas 5/8 and 3/8.
    prediction, target = row(0, 1, 2, 3, 4, 0, 1, 2), row(0, 0, 1, 3, 6, 0, 3, 1)
    box_mask = torch.tensor([[[True] * 5 + [False] * 3]])
    loss = affine_invariant_loss(prediction, target, everywhere(target), box_mask=box_mask, min_pixels=1)
    assert loss.item() == pytest.approx(5 / 8 * 5 / 9 + 3 / 8 * 4 / 3)


def test_cutmix_loss_ignores_scale_of_each_region():
    prediction, target, mask = random_batch()
    box_mask = box_of(mask, 10, 12)
    moved = torch.where(box_mask, 5 * prediction + 3, 0.5 * prediction - 1)
    loss = affine_invariant_loss(prediction, target, mask, box_mask=box_mask)
    torch.testing.assert_close(affine_invariant_loss(moved, target, mask, box_mask=box_mask), loss)
    assert affine_invariant_loss(moved, target, mask) != loss


def test_cutmix_loss_is_mean_over_images():
    prediction, target, mask = random_batch()
    box_mask = box_of(mask, 10, 12)
    box_mask[1] = False
    loss = affine_invariant_loss(prediction, target, mask, box_mask=box_mask, reduction="image")
    single = [
        affine_invariant_loss(
            *(x[i : i + 1] for x in (prediction, target, mask)), box_mask=box_mask[i : i + 1]
        )
        for i in range(4)
    ]
    torch.testing.assert_close(loss, torch.stack(single).mean())
    torch.testing.assert_close(single[1], affine_invariant_loss(prediction[1:2], target[1:2], mask[1:2]))


@pytest.mark.parametrize("flaw", ["few pixels", "constant", "almost constant"])
def test_uninformative_box_is_left_out(flaw):
    prediction, target, mask = random_batch(valid=1.1)
    box_mask = box_of(mask, 2, 4) if flaw == "few pixels" else box_of(mask, 10, 12)
    if flaw == "constant":
        target = torch.where(box_mask, 0.25, target)
    if flaw == "almost constant":  # spread about 2.5e-4 against 0.25 of the image
        target = torch.where(box_mask, 0.25 + 1e-3 * target, target)
    loss, grad = gradient(lambda p: affine_invariant_loss(p, target, mask, box_mask=box_mask), prediction)
    torch.testing.assert_close(loss, affine_invariant_loss(prediction, target, mask & ~box_mask))
    assert grad[box_mask].abs().max() == 0


def test_cutmix_loss_ignores_nan_off_mask():
    prediction, target, mask = random_batch()
    box_mask = box_of(mask, 10, 12)
    nan = torch.tensor(torch.nan)
    clean = gradient(
        lambda p: affine_invariant_loss(p, target, mask, box_mask=box_mask, trim=0.1), prediction
    )
    holes = torch.where(mask, target, nan)
    poisoned = gradient(
        lambda p: affine_invariant_loss(p, holes, mask, box_mask=box_mask, trim=0.1),
        torch.where(mask, prediction, nan),
    )
    assert clean[0] == poisoned[0]
    assert torch.equal(clean[1], poisoned[1])


def test_cutmix_gradient_equals_finite_differences():
    prediction, target, mask = random_batch(b=2, h=4, w=6, valid=0.9)
    box_mask = box_of(mask, 3, 3)
    box_mask[1] = False
    assert torch.autograd.gradcheck(
        lambda p: affine_invariant_loss(p, target.double(), mask, box_mask=box_mask, min_pixels=3),
        prediction.double().requires_grad_(),
    )


def test_box_mask_of_wrong_shape_is_refused():
    prediction, target, mask = random_batch()
    with pytest.raises(ValueError, match=r"box_mask is bool\(4, 12\)"):
        affine_invariant_loss(prediction, target, mask, box_mask=mask[:, :, 0])


# Feature alignment


def tokens(*vectors: tuple[float, float]) -> Tensor:
    return torch.tensor([vectors])  # [1 n 2]


def test_feature_alignment_keeps_tokens_beyond_margin():
    # cos with (1, 0): 1, 0.96, 0.8, 0 -> distance 0, 0.04, 0.2, 1; margin 0.15 keeps the last two.
    frozen = tokens((1, 0), (1, 0), (1, 0), (1, 0))
    student = tokens((2, 0), (24, 7), (4, 3), (0, 5))
    loss, kept, distance, acting = feature_alignment_loss(student, frozen)
    assert acting == 1
    assert loss.item() == pytest.approx((0.2 + 1) / 2)
    assert kept.item() == 0.5
    torch.testing.assert_close(distance, torch.tensor([[0, 0.04, 0.2, 1]]))
    loss = feature_alignment_loss(student, frozen, mean_over="all").loss
    assert loss.item() == pytest.approx((0.2 + 1) / 4)


def test_loss_acts_if_any_rank_keeps_a_token():
    same = torch.ones(1, 2, 3)
    assert feature_alignment_loss(same, same).acting == 0
    half_a_token = feature_alignment_loss(
        same, same, mean_over_ranks=lambda count: count + 0.5
    )  # of two ranks
    assert half_a_token.acting == 1
    assert feature_alignment_loss(same, same, mean_over="all").acting is None


def test_token_at_margin_is_kept():
    # Orthogonal tokens are at distance exactly 1.
    student, frozen = tokens((0.0, 1.0)), tokens((1.0, 0.0))
    assert feature_alignment_loss(student, frozen, alpha=1.0)[1] == 1
    assert feature_alignment_loss(student, frozen, alpha=1.0 + 1e-6)[1] == 0


def test_equal_features_have_no_loss_nor_gradient():
    features = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0))
    (loss, kept, *_), (grad,) = (
        feature_alignment_loss(features, features),
        torch.autograd.grad(
            feature_alignment_loss(leaf := features.clone().requires_grad_(), features)[0], leaf
        ),
    )
    assert loss == 0
    assert kept == 0
    assert grad.abs().max() == 0


def test_centering_removes_common_direction():
    # The mean of the frozen tokens is (10, 0). Without it they are (0, 2) and (0, -2), the student's (0, 1)
    # and (3, -4): cos 1 and 0.8, of vectors that were all within 0.15 of each other.
    frozen, student = tokens((10, 2), (10, -2)), tokens((10, 1), (13, -4))
    assert feature_alignment_loss(student, frozen).kept == 0
    loss, kept, distance, _ = feature_alignment_loss(student, frozen, center="mean")
    torch.testing.assert_close(distance, torch.tensor([[0, 0.2]]))
    assert kept == 0.5
    assert loss.item() == pytest.approx(0.2)
    assert mean_token(frozen).tolist() == [10, 0]
    with pytest.raises(ValueError, match="unknown center 'median'; choose from none, mean"):
        feature_alignment_loss(student, frozen, center="median")


@pytest.mark.parametrize("center", CENTERS)
def test_no_gradient_flows_into_frozen_features(center):
    student, frozen = torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    student.requires_grad_()
    frozen.requires_grad_()
    loss, _, distance, _ = feature_alignment_loss(student, frozen, center=center)
    loss.backward()
    assert not distance.requires_grad
    assert student.grad is not None
    assert student.grad.abs().max() > 0
    assert frozen.grad is None


def test_feature_alignment_under_autocast_is_float32():
    student, frozen = torch.randn(2, 2, 50, 384, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = feature_alignment_loss(student.float(), frozen.float())[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = feature_alignment_loss(student, frozen).loss
    assert loss == expected


def test_features_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"student tokens are \(1, 4, 384\), frozen ones \(1, 4, 768\)"):
        feature_alignment_loss(torch.zeros(1, 4, 384), torch.zeros(1, 4, 768))


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("trim", [0.0, 0.1])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_mean_over_ranks_is_whole_batch_loss(normalisation, reduction, trim, mixed):
    prediction, target, mask = random_batch(b=6)
    mask[1], target[2] = False, 0.5  # an image without labels and one that says nothing
    mask[3, :5] = False
    box = box_of(mask, 6, 9)
    box[4] = False
    prediction.requires_grad_()

    def loss_of(i, mean_over_ranks=on_one_rank):
        options = {"normalisation": normalisation, "reduction": reduction, "trim": trim}
        options |= {"mean_over_ranks": mean_over_ranks, "box_mask": box[i] if mixed else None}
        return affine_invariant_loss(prediction[i], target[i], mask[i], **options)

    whole = loss_of(list(range(6)))
    mean = torch.stack(losses_of_shares(loss_of, SHARES)).mean()
    torch.testing.assert_close(mean, whole)
    wanted, found = (torch.autograd.grad(value, prediction)[0] for value in (whole, mean))
    torch.testing.assert_close(found, wanted)
    assert wanted.abs().sum() > 0


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("mean_over", ["kept", "all"])
def test_feature_alignment_over_ranks_is_whole_batch(mean_over, center):
    generator = torch.Generator().manual_seed(0)
    student, frozen = torch.randn(2, 6, 5, 8, generator=generator)
    frozen[:3] = student[:3] + 0.1 * frozen[:3]  # near already: the processes keep different shares
    if center == "mean":
        student, frozen = student + 5, frozen + 5
    student = student.detach().requires_grad_()
    options = {"mean_over": mean_over, "center": center}
    whole, kept, *_ = feature_alignment_loss(student, frozen, **options)
    parts = losses_of_shares(
        lambda i, mean_over_ranks: torch.stack(
            feature_alignment_loss(student[i], frozen[i], mean_over_ranks=mean_over_ranks, **options)[:2]
        ),
        SHARES,
    )
    loss, share = torch.stack(parts).mean(0)
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(share, kept)
    assert 0 < float(kept) < 1
    wanted, found = (torch.autograd.grad(value, student)[0] for value in (whole, loss))
    torch.testing.assert_close(found, wanted)
