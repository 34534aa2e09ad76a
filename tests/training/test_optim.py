"""Parameter groups are complete, and the learning rate follows its formula."""

from collections import Counter

import pytest
import torch
from torch import nn

from depthany.models.model import depth_anything
from depthany.training.optim import build_optimizer, schedule, set_learning_rate


@pytest.mark.parametrize("bridged", [False, True])
def test_every_parameter_is_in_exactly_one_group(micro: str, bridged: bool) -> None:
    model = depth_anything(micro)
    projection = nn.Linear(24, 192) if bridged else nn.Identity()
    optimizer = build_optimizer(model, list(projection.parameters()), 1e-4, 10, 0.01, (0.9, 0.999))
    grouped = Counter(id(parameter) for group in optimizer.param_groups for parameter in group["params"])
    assert set(grouped.values()) == {1}
    assert grouped.keys() == {id(parameter) for net in (model, projection) for parameter in net.parameters()}


def test_decoder_learns_ten_times_as_fast_as_the_encoder_at_every_step(micro: str) -> None:
    model = depth_anything(micro)
    optimizer = build_optimizer(
        model, [], lr=5e-6, decoder_lr_factor=10, weight_decay=0.01, betas=(0.9, 0.99)
    )
    rate = {}
    for factor in (1.0, 0.25):
        set_learning_rate(optimizer, factor)
        for group in optimizer.param_groups:
            rate |= {id(parameter): group["lr"] for parameter in group["params"]}
        assert {rate[id(p)] for p in model.encoder.parameters()} == {5e-6 * factor}
        assert {round(rate[id(p)], 12) for p in model.decoder.parameters()} == {5e-5 * factor}
    assert all(group["weight_decay"] == 0.01 for group in optimizer.param_groups)


def test_an_update_moves_each_parameter_by_its_own_rate(micro: str) -> None:
    torch.manual_seed(0)
    model = depth_anything(micro)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(
        model, [], lr=1e-4, decoder_lr_factor=10, weight_decay=0.0, betas=(0.9, 0.999)
    )
    set_learning_rate(optimizer, 0.5)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    optimizer.step()  # Adam's first step is the rate itself, whatever the gradient
    for name, parameter in model.named_parameters():
        expected = 5e-5 if name.startswith("encoder") else 5e-4
        moved = (before[name] - parameter.detach()).double()
        torch.testing.assert_close(moved, torch.full_like(moved, expected), rtol=5e-3, atol=2e-7)


def test_linear_decay_by_hand() -> None:
    assert [schedule(step, 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert schedule(99_999, 100_000) == pytest.approx(1e-5)


def test_warm_up_by_hand_rises_linearly_into_the_decay() -> None:
    factors = [schedule(step, 10, warmup_steps=3) for step in range(10)]
    assert factors == pytest.approx(
        [1 / 4, 0.9 * 2 / 4, 0.8 * 3 / 4, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], rel=1e-12
    )


def test_decay_power_by_hand() -> None:
    assert schedule(3, 4, decay_power=2.0) == pytest.approx(1 / 16)
    assert schedule(2, 4, decay_power=0.5) == pytest.approx(0.7071068)
