"""The weighted sum of losses by name, and what a loss receives."""

from functools import wraps

import pytest
import torch
from torch import Tensor

from depthany.losses.affine_invariant import affine_invariant_loss
from depthany.losses.difference import normalised_difference
from depthany.losses.gradient import gradient_loss
from depthany.losses.reduce import on_one_rank
from depthany.losses.table import LOSSES, require_terms, require_terms_of, weighted_terms


def mean_absolute_error(prediction: Tensor, target: Tensor, mask: Tensor, *, mean_over_ranks) -> Tensor:
    """A loss that names no option."""
    return torch.where(mask, (prediction - target).abs(), 0).sum() / mean_over_ranks(mask.sum())


@pytest.fixture
def with_mae(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "mae", mean_absolute_error)


def maps() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """prediction, target, mask, box_mask [3 8 9]."""
    generator = torch.Generator().manual_seed(0)
    prediction, target, draw = torch.rand(3, 3, 8, 9, generator=generator)
    box_mask = torch.zeros(3, 8, 9, dtype=torch.bool)
    box_mask[:2, :4, :5] = True
    return prediction, target, draw < 0.7, box_mask


def test_weighted_sum_by_hand(with_mae) -> None:
    prediction, target, mask, _ = maps()
    total, values = weighted_terms({"affine_invariant": 0.5, "mae": 2.0}, prediction, target, mask)
    by_hand = {
        "affine_invariant": affine_invariant_loss(prediction, target, mask),
        "mae": (prediction - target).abs()[mask].mean(),
    }
    torch.testing.assert_close(values, by_hand)
    torch.testing.assert_close(total, 0.5 * by_hand["affine_invariant"] + 2 * by_hand["mae"])


def test_weight_1_keeps_the_bits() -> None:
    prediction, target, mask, box_mask = maps()
    total, _ = weighted_terms(
        {"affine_invariant": 1.0}, prediction, target, mask, box_mask=box_mask, trim=0.1
    )
    assert total == affine_invariant_loss(prediction, target, mask, box_mask=box_mask, trim=0.1)


@pytest.mark.parametrize("mixed", [False, True])
def test_losses_of_one_difference_share_it(mixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    prediction, target, mask, box_mask = maps()
    options = {"box_mask": box_mask if mixed else None, "reduction": "image", "trim": 0.1}
    alone = {
        "affine_invariant": affine_invariant_loss(prediction, target, mask, **options),
        "gradient": gradient_loss(prediction, target, mask, **options),
    }
    calls = list[dict]()

    @wraps(normalised_difference)
    def counted(*args, **given):
        calls.append(given)
        return normalised_difference(*args, **given)

    monkeypatch.setattr("depthany.losses.table.normalised_difference", counted)
    terms = {"affine_invariant": 1.0, "gradient": 2.0}
    total, values = weighted_terms(terms, prediction, target, mask, **options)
    assert values == alone and total == alone["affine_invariant"] + 2 * alone["gradient"]
    assert len(calls) == 1


def test_loss_of_weight_0_is_not_computed(with_mae, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "never", lambda *_, **__: pytest.fail("computed"))
    assert weighted_terms({"mae": 1.0, "never": 0.0}, *maps()[:3])[1].keys() == {"mae"}


def test_options_reach_only_losses_that_name_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_trim(prediction, target, mask, *, mean_over_ranks, trim):
        received.append((trim, mean_over_ranks))
        return prediction.sum()

    received: list[tuple] = []
    monkeypatch.setitem(LOSSES, "trimmed", with_trim)
    weighted_terms({"trimmed": 1.0}, *maps()[:3], trim=0.25, reduction="image")
    assert received == [(0.25, on_one_rank)]


def test_regions_become_images_without_box_mask(with_mae, monkeypatch: pytest.MonkeyPatch) -> None:
    def shares(prediction, target, mask, *, mean_over_ranks):
        seen.append(mask)
        return mean_absolute_error(prediction, target, mask, mean_over_ranks=mean_over_ranks)

    seen: list[Tensor] = []
    monkeypatch.setitem(LOSSES, "mae", shares)
    prediction, target, mask, box_mask = maps()
    total, _ = weighted_terms({"mae": 1.0}, prediction, target, mask, box_mask=box_mask)
    assert torch.equal(seen[0][:3], mask & box_mask)
    assert torch.equal(seen[0][3:], mask & ~box_mask)
    torch.testing.assert_close(total, (prediction - target).abs()[mask].mean())


@pytest.mark.parametrize(
    "terms, message",
    [
        ({"affine": 1.0}, "terms: unknown loss 'affine'; choose from affine_invariant"),
        ({"affine_invariant": -1.0}, "terms.affine_invariant=-1.0: expected 0 or more"),
        ({"affine_invariant": 0.0}, "no loss has a weight above 0"),
        ({}, "no loss has a weight above 0"),
    ],
)
def test_wrong_terms_are_refused(terms: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require_terms(terms)


@pytest.mark.parametrize("kind, name, of", [
    ("depth_m", "affine_invariant", "relative disparity"), ("depth_m", "gradient", "relative disparity"),
    ("disparity", "silog", "metres"), ("disparity", "log_gradient", "metres"),
])  # fmt: skip
def test_losses_of_another_quantity_are_refused(kind: str, name: str, of: str) -> None:
    with pytest.raises(ValueError, match=rf"stage.terms.{name} is a loss of {of}; stage=x takes"):
        require_terms_of(kind, {"mine": 1.0, name: 1.0}, "stage=x")


def test_metres_need_a_loss_with_scale() -> None:
    for terms in ({"silog": 1.0, "log_gradient": 1.0}, {"silog_v2": 1.0, "silog": 0}, {"mine": 1.0}):
        require_terms_of("depth_m", terms, "stage=metric")
    with pytest.raises(ValueError, match=r"log_gradient alone .*: give one of silog, silog_v2 a weight"):
        require_terms_of("depth_m", {"silog": 0, "log_gradient": 1.0}, "stage=metric")
