"""The losses on metres: by hand, by another formula, over ranks, and where there is little to learn from."""

import math
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from depthany.losses.silog import log_gradient_loss, silog_loss, silog_v2_loss
from depthany.losses.table import LOSSES

LN2 = math.log(2)
METRIC = ("silog", "silog_v2", "log_gradient")


def batch(seed: int = 0, b: int = 6, valid: float = 0.4) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction and target of 0.5 to 20 m, and a sparse mask with NaN off it."""
    draw = torch.Generator().manual_seed(seed)
    prediction, target = 0.5 + 19.5 * torch.rand(2, b, 9, 13, generator=draw)
    mask = torch.rand(b, 9, 13, generator=draw) < valid
    return prediction, torch.where(mask, target, torch.nan), mask


def row(*metres: float) -> Tensor:
    return torch.tensor(metres, dtype=torch.float32)[None, None]


def test_silog_of_two_pixels() -> None:
    # g = ln 2 and 2 ln 2: mean 1.5 ln 2, variance over n - 1 = 0.5 ln2^2
    prediction, target = row(2, 4), row(1, 1)
    mask = torch.ones_like(target, dtype=torch.bool)
    expected = 10 * math.sqrt(0.5 * LN2**2 + 0.15 * (1.5 * LN2) ** 2)
    assert silog_loss(prediction, target, mask).item() == pytest.approx(expected, rel=1e-5)
    # mean of squares 2.5 ln2^2
    expected = math.sqrt(2.5 * LN2**2 - 0.5 * (1.5 * LN2) ** 2)
    assert silog_v2_loss(prediction, target, mask).item() == pytest.approx(expected, rel=1e-5)


def test_log_gradient_of_one_step() -> None:
    # g = 0, ln 2, ln 2 to the right: one step in two at scale 1, one of g[2] - g[0] at scale 2; none below
    loss = log_gradient_loss(row(1, 2, 2), row(1, 1, 1), torch.ones(1, 1, 3, dtype=torch.bool), scales=2)
    assert loss.item() == pytest.approx((LN2 / 2 + LN2) / 2)


def test_silog_is_eigens_loss_with_lambda_85() -> None:
    prediction, target, mask = (each.double() if each.is_floating_point() else each for each in batch())
    g = (prediction.log() - target.log())[mask]
    for lambd, loss, scale in ((0.85, silog_loss, 10.0), (0.5, silog_v2_loss, 1.0)):
        eigen = scale * (g.square().mean() - lambd * g.mean().square()).sqrt()
        found = loss(prediction, target, mask)
        assert found.item() == pytest.approx(eigen.item(), rel=1 / len(g))  # n against n - 1


def test_loss_ignores_what_is_off_the_mask() -> None:
    prediction, target, mask = batch()
    other = torch.where(mask, prediction, -3)
    for name in METRIC:
        prediction.grad = None
        found, same = (LOSSES[name](each.requires_grad_(), target, mask) for each in (prediction, other))
        assert found == same
        (gradient,) = torch.autograd.grad(found, prediction)
        assert torch.isfinite(gradient).all()
        assert not gradient[~mask].any()


@pytest.mark.parametrize("name", METRIC)
@pytest.mark.parametrize("known", [0, 1])
def test_too_few_pixels_give_a_finite_loss(name: str, known: int) -> None:
    prediction = torch.full((1, 2, 3), 4.0, requires_grad=True)
    mask = torch.zeros(1, 2, 3, dtype=torch.bool)
    mask.view(-1)[:known] = True
    loss = LOSSES[name](prediction, torch.full((1, 2, 3), 2.0), mask)
    (gradient,) = torch.autograd.grad(loss, prediction)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    assert (loss.item() == 0) == (known == 0 or name == "log_gradient")
    assert not gradient[~mask].any()


@pytest.mark.parametrize("name", METRIC)
def test_exact_and_zero_predictions_have_finite_gradients(name: str) -> None:
    target = row(1, 2, 3, 4)
    for prediction in (target.clone(), torch.zeros(1, 1, 4)):
        prediction.requires_grad_()
        loss = LOSSES[name](prediction, target, torch.ones_like(target, dtype=torch.bool))
        (gradient,) = torch.autograd.grad(loss, prediction)
        assert torch.isfinite(loss) and torch.isfinite(gradient).all()
    nan = LOSSES[name](target * torch.nan, target, torch.ones_like(target, dtype=torch.bool))
    assert nan.isnan(), "a broken model must show"


def test_silog_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(1, 1, 2\).*expected one shape \[b h w\], a bool mask"):
        silog_loss(row(1, 2), row(1, 2), row(1, 0))


def of_ranks(loss_of: Callable, shares: list[list[int]]) -> list[Tensor]:
    """Losses of ranks that run at once and share their means: `loss_of(images, mean_over_ranks)`."""
    barrier, slots = threading.Barrier(len(shares)), [torch.zeros(())] * len(shares)
    losses = [torch.zeros(())] * len(shares)

    def run(rank: int) -> None:
        def mean(number: Tensor) -> Tensor:
            slots[rank] = number.detach().double()
            barrier.wait()
            found = torch.stack(slots).mean().to(torch.promote_types(number.dtype, torch.float32))
            barrier.wait()
            return found

        losses[rank] = loss_of(shares[rank], mean)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(shares))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return losses


@pytest.mark.parametrize("name", METRIC)
def test_metric_loss_over_ranks_is_whole_batch(name: str) -> None:
    prediction, target, mask = batch(valid=0.9)
    mask[1] = False
    prediction.requires_grad_()

    def loss_of(images: list[int], mean_over_ranks: Callable) -> Tensor:
        own = prediction[images], target[images], mask[images]
        return LOSSES[name](*own, mean_over_ranks=mean_over_ranks)

    whole = LOSSES[name](prediction, target, mask)
    mean = torch.stack(of_ranks(loss_of, [[0, 3], [1], [2, 4, 5], []])).mean()
    # the variance is over n - 1 with n of a rank on average
    torch.testing.assert_close(mean, whole, rtol=0.01 if name == "silog" else 1e-5, atol=0)
    wanted, found = (torch.autograd.grad(value, prediction)[0] for value in (whole, mean))
    torch.testing.assert_close(found, wanted, rtol=0.02 if name == "silog" else 1e-4, atol=1e-7)
    assert wanted.abs().sum() > 0
