"""Losses of class logits: values by hand, and batches in which no pixel is known."""

import math

import pytest
import torch
from torch.nn import functional as F

from depthany.losses.affine_invariant import affine_invariant_loss
from depthany.losses.class_losses import cross_entropy_loss, dice_loss, ohem_loss
from depthany.losses.table import require_terms_of

LOGITS = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).log_softmax(0)[None, :, None]  # [1 2 1 2], two pixels
TARGET, BOTH = torch.tensor([[[0, 0]]]), torch.ones(1, 1, 2, dtype=torch.bool)


def test_cross_entropy_is_torchs_over_known_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 4, 3, generator=generator)
    target = torch.randint(0, 5, (2, 4, 3), generator=generator)
    mask = torch.rand(2, 4, 3, generator=generator) < 0.6
    expected = F.cross_entropy(logits, torch.where(mask, target, 255), ignore_index=255)
    torch.testing.assert_close(cross_entropy_loss(logits, torch.where(mask, target, 255), mask), expected)


@pytest.mark.parametrize("loss", [cross_entropy_loss, ohem_loss, dice_loss])
def test_batch_without_known_pixel_costs_nothing(loss) -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    value = loss(logits, torch.full((2, 4, 4), 255), torch.zeros(2, 4, 4, dtype=torch.bool))
    value.backward()
    assert value == 0
    assert logits.grad is not None
    assert not logits.grad.any(), "torch's own mean would be NaN"


def test_ohem_counts_the_hard_pixels() -> None:
    easy, hard = math.exp(2) / (math.exp(2) + 1), 1 / (1 + math.e)  # probabilities of the true class
    strict = ohem_loss(LOGITS, TARGET, BOTH, ohem_threshold=0.5, ohem_least=0)
    assert strict.item() == pytest.approx(-math.log(hard))
    filled = ohem_loss(LOGITS, TARGET, BOTH, ohem_threshold=0.1, ohem_least=1)
    assert filled.item() == pytest.approx(-math.log(hard)), "the hardest pixel counts whatever the threshold"
    whole = ohem_loss(LOGITS, TARGET, BOTH, ohem_threshold=0.5, ohem_least=10)
    assert whole.item() == pytest.approx(-(math.log(hard) + math.log(easy)) / 2)


def test_dice_of_one_class_by_hand() -> None:
    p = LOGITS.exp()[0, 0, 0]  # of class 0, the only one that is there
    expected = 1 - 2 * p.sum() / (p.sum() + 2)
    assert dice_loss(LOGITS, TARGET, BOTH).item() == pytest.approx(expected.item())


def test_losses_refuse_maps_of_the_other_kind() -> None:
    with pytest.raises(ValueError, match=r"a loss of classes takes logits"):
        cross_entropy_loss(torch.rand(1, 2, 2), TARGET, BOTH)
    with pytest.raises(ValueError, match=r"stage.terms.ohem is a loss of classes; stage=teacher takes"):
        require_terms_of("disparity", {"ohem": 1.0}, "stage=teacher")
    with pytest.raises(ValueError, match=r"stage.terms.silog is a loss of metres; stage=segmentation takes"):
        require_terms_of("classes", {"silog": 1.0}, "stage=segmentation")
    assert affine_invariant_loss(torch.rand(1, 4, 4), torch.rand(1, 4, 4), torch.ones(1, 4, 4).bool()) > 0
