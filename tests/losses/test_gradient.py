"""The gradient-matching loss against hand-computed values, a float64 loop, and the laws that it must obey."""

import numpy as np
import pytest
import torch
from loss_batches import SHARES, box_of, everywhere, gradient, losses_of_shares, random_batch, row
from torch import Tensor

from depthany.losses.affine_invariant import affine_invariant_loss
from depthany.losses.difference import REDUCTIONS, normalised_difference
from depthany.losses.gradient import gradient_loss
from depthany.losses.normalise import NORMALISATIONS
from depthany.losses.reduce import on_one_rank


def reference_loss(
    prediction: Tensor, target: Tensor, mask: Tensor, normalisation: str, reduction: str, scales: int
) -> float:
    """The loss in float64, a pixel pair at a time."""
    sums, counts = np.zeros((scales, len(mask))), np.zeros((scales, len(mask)))
    for i, (p, t, m) in enumerate(zip(prediction.double().numpy(), target.double().numpy(), mask.numpy())):
        if not m.any():
            continue
        if normalisation == "least_squares":
            design = np.stack([p[m], np.ones(m.sum())], axis=1)
            scale, shift = np.linalg.lstsq(design, t[m], rcond=None)[0]
            difference = scale * p + shift - t
        else:
            of_both = []
            for values in (p, t):
                centred = values - np.sort(values[m])[(m.sum() - 1) // 2]
                of_both.append(centred / np.abs(centred[m]).mean())
            difference = of_both[0] - of_both[1]
        for k in range(scales):
            r, known = difference[:: 2**k, :: 2**k], m[:: 2**k, :: 2**k]
            counts[k, i] = known.sum()
            for y in range(r.shape[0]):
                for x in range(r.shape[1]):
                    for v, u in ((y + 1, x), (y, x + 1)):
                        if v < r.shape[0] and u < r.shape[1] and known[y, x] and known[v, u]:
                            sums[k, i] += abs(r[v, u] - r[y, x])
    if reduction == "batch":
        return float((sums.sum(1) / np.maximum(counts.sum(1), 1)).sum())
    return float(((sums / np.maximum(counts, 1)).sum(1) / np.maximum((counts > 0).sum(1), 1)).sum())


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_loss_equals_float64_loop_over_pairs(normalisation, reduction):
    for seed, (valid, scales) in enumerate([(0.1, 4), (0.5, 3), (1.1, 4)]):
        prediction, target, mask = random_batch(seed, valid=valid)
        mask[2] = False
        options = {"normalisation": normalisation, "reduction": reduction, "scales": scales}
        expected = reference_loss(prediction, target, mask, **options)
        assert gradient_loss(prediction, target, mask, **options).item() == pytest.approx(expected, rel=1e-5)


def test_loss_of_five_pixels_at_two_scales():
    # prediction 0 1 2 3 4 -> -5/3 -5/6 0 5/6 5/3, target 0 0 1 3 6 -> -5/9 -5/9 0 10/9 25/9
    # R = -10/9 -5/18 0 -5/18 -10/9: steps 5/6 5/18 5/18 5/6, sum 20/9 over 5 pixels
    # every 2nd: -10/9 0 -10/9: steps 10/9 10/9, sum 20/9 over 3 pixels
    prediction, target = row(0, 1, 2, 3, 4), row(0, 0, 1, 3, 6)
    loss = gradient_loss(prediction, target, everywhere(target), scales=2)
    assert loss.item() == pytest.approx(20 / 9 / 5 + 20 / 9 / 3)
    # below one another instead of side by side
    upright = (each.transpose(1, 2) for each in (prediction, target, everywhere(target)))
    assert gradient_loss(*upright, scales=2) == loss


def test_pair_counts_where_both_are_valid():
    # Without the middle pixel the median is that of 0 1 3 4 and 0 0 3 6; R keeps its steps 0-1 and 3-4 alone.
    prediction, target = row(0, 1, 9, 3, 4), row(0, 0, 9, 3, 6)
    mask = torch.tensor([[[True, True, False, True, True]]])
    # lower medians 1 and 0: -1 0 2 3 over MAD 3/2, 0 0 3 6 over MAD 9/4: R = -2/3 0 | 0 -2/3
    assert gradient_loss(prediction, target, mask, scales=1).item() == pytest.approx((2 / 3 + 2 / 3) / 4)


def test_reduction_weighs_pixels_or_images_of_steps():
    # First: the example above, steps 20/9 of 5 pixels. Second: R = (0 2) - (2 0), a step of 4 of 2 pixels.
    prediction = torch.cat([row(0, 1, 2, 3, 4), row(0, 1, 7, 7, 7)])
    target = torch.cat([row(0, 0, 1, 3, 6), row(1, 0, 9, 5, 1)])
    mask = torch.tensor([[[True] * 5], [[True, True, False, False, False]]])
    batch = gradient_loss(prediction, target, mask, reduction="batch", scales=1)
    image = gradient_loss(prediction, target, mask, reduction="image", scales=1)
    assert batch.item() == pytest.approx((20 / 9 + 4) / 7)
    assert image.item() == pytest.approx((20 / 9 / 5 + 4 / 2) / 2)


def test_no_pair_crosses_the_border_of_a_box():
    # Inside (first five) R is that of the example, steps 20/9. Outside: 0 1 2 -> -3/2 0 3/2 and
    # 0 3 1 -> -1 2 0: R = -1/2 -2 3/2, steps 3/2 7/2. The step from 4 to 0 at the border does not count.
    prediction, target = row(0, 1, 2, 3, 4, 0, 1, 2), row(0, 0, 1, 3, 6, 0, 3, 1)
    box_mask = torch.tensor([[[True] * 5 + [False] * 3]])
    loss = gradient_loss(prediction, target, everywhere(target), box_mask=box_mask, min_pixels=1, scales=1)
    assert loss.item() == pytest.approx((20 / 9 + 5) / 8)


def test_scale_of_a_region_changes_nothing_in_steps():
    prediction, target, mask = random_batch()
    box_mask = box_of(mask, 10, 12)
    moved = torch.where(box_mask, 5 * prediction + 3, 0.5 * prediction - 1)
    loss = gradient_loss(prediction, target, mask, box_mask=box_mask)
    torch.testing.assert_close(gradient_loss(moved, target, mask, box_mask=box_mask), loss)
    # ... since a region of few pixels is left out with all its pairs
    box_mask = box_of(mask, 2, 4)
    alone = gradient_loss(prediction, target, mask & ~box_mask)
    torch.testing.assert_close(gradient_loss(prediction, target, mask, box_mask=box_mask), alone)


@pytest.mark.parametrize("trim_gradient", [False, True])
def test_trim_is_ignored_unless_asked_for(trim_gradient):
    prediction, target, mask = random_batch()
    trimmed = gradient_loss(prediction, target, mask, trim=0.2, trim_gradient=trim_gradient)
    values, used = normalised_difference(prediction, target, mask)
    if trim_gradient:  # what the affine-invariant loss keeps
        error = values.abs()
        for i in range(len(used)):
            drop = int(0.2 * used[i].sum())
            worst = torch.where(used[i], error[i], -1).argsort(descending=True)[:drop]
            used[i, worst] = False
    kept, difference = used.view(mask.shape), values.view(mask.shape)
    expected = 0.0
    for k in range(4):
        r, m = difference[:, :: 2**k, :: 2**k], kept[:, :: 2**k, :: 2**k]
        down, right = m[:, 1:] & m[:, :-1], m[:, :, 1:] & m[:, :, :-1]
        total = (r[:, 1:] - r[:, :-1])[down].abs().sum() + (r[:, :, 1:] - r[:, :, :-1])[right].abs().sum()
        expected += float(total / m.sum())
    assert trimmed.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_what_is_off_the_mask_changes_no_step(normalisation):
    prediction, target, mask = random_batch()
    mask[1] = False
    box_mask, nan = box_of(mask, 10, 12), torch.tensor(torch.nan)

    def loss_of(target):
        return lambda p: gradient_loss(p, target, mask, box_mask=box_mask, normalisation=normalisation)

    clean = gradient(loss_of(target), prediction)
    poisoned = gradient(loss_of(torch.where(mask, target, nan)), torch.where(mask, prediction, nan))
    assert clean[0] == poisoned[0]
    assert torch.equal(clean[1], poisoned[1])
    assert clean[1][~mask].abs().max() == 0 < clean[1][mask].abs().max()
    broken = torch.where(mask & (prediction > 0.9), nan, prediction)
    assert loss_of(target)(broken).isnan()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_batch_without_pairs_has_zero_gradient(reduction):
    prediction, target, mask = random_batch(valid=-1)
    mask[0, 0, 0] = True  # one pixel has no neighbour
    loss, grad = gradient(lambda p: gradient_loss(p, target, mask, reduction=reduction), prediction)
    assert loss == 0
    assert grad.abs().max() == 0


def test_gradient_of_steps_equals_finite_differences():
    prediction, target, mask = random_batch(b=2, h=4, w=6, valid=0.9)
    box_mask = box_of(mask, 3, 3)
    box_mask[1] = False
    assert torch.autograd.gradcheck(
        lambda p: gradient_loss(p, target.double(), mask, box_mask=box_mask, min_pixels=3, scales=2),
        prediction.double().requires_grad_(),
    )


def test_bfloat16_autocast_leaves_steps_alone():
    prediction, target, mask = random_batch()
    loss = gradient_loss(prediction, target, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert gradient_loss(prediction, target, mask) == loss
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_mean_over_ranks_is_whole_gradient_loss(reduction, mixed):
    prediction, target, mask = random_batch(b=6)
    mask[1], target[2] = False, 0.5  # an image without labels and one that says nothing
    mask[3, 1:] = False
    box = box_of(mask, 6, 9)
    box[4] = False
    prediction.requires_grad_()

    def loss_of(i, mean_over_ranks=on_one_rank):
        options = {"reduction": reduction, "mean_over_ranks": mean_over_ranks}
        return gradient_loss(prediction[i], target[i], mask[i], box_mask=box[i] if mixed else None, **options)

    whole = loss_of(list(range(6)))
    mean = torch.stack(losses_of_shares(loss_of, SHARES)).mean()
    torch.testing.assert_close(mean, whole)
    wanted, found = (torch.autograd.grad(value, prediction)[0] for value in (whole, mean))
    torch.testing.assert_close(found, wanted)
    assert wanted.abs().sum() > 0


def test_equal_maps_have_neither_loss():
    prediction, _, mask = random_batch()
    assert gradient_loss(3 * prediction - 1, prediction, mask) < 1e-5
    assert affine_invariant_loss(3 * prediction - 1, prediction, mask) < 1e-5


def test_wrong_scales_are_refused():
    with pytest.raises(ValueError, match="scales is 0; expected 1 or more"):
        gradient_loss(*random_batch(), scales=0)
