"""Parameter groups are complete, and optimizers and learning rates follow their formulas."""

import math
from collections import Counter

import pytest
import torch
from torch import nn

from depthany.models.model import depth_anything
from depthany.training.optim import (
    OPTIMIZERS,
    SCHEDULES,
    LrFactors,
    OptimizerSettings,
    ScheduleSettings,
    build_optimizer,
    lr_factor,
    momentum_of,
    set_learning_rate,
)

TENFOLD = LrFactors(encoder=1, decoder=10, head=10)


@pytest.mark.parametrize("bridged", [False, True])
def test_every_parameter_is_in_exactly_one_group(micro: str, bridged: bool) -> None:
    model = depth_anything(micro)
    projection = nn.Linear(24, 192) if bridged else nn.Identity()
    optimizer = build_optimizer(model, list(projection.parameters()), OptimizerSettings(1e-4))
    grouped = Counter(id(parameter) for group in optimizer.param_groups for parameter in group["params"])
    assert set(grouped.values()) == {1}
    assert grouped.keys() == {id(parameter) for net in (model, projection) for parameter in net.parameters()}


def test_frozen_part_has_no_group(micro: str) -> None:
    model = depth_anything(micro)
    model.encoder.requires_grad_(False)
    optimizer = build_optimizer(model, [], OptimizerSettings(1e-4))
    names = {name for name, _ in model.named_children()} - {"encoder"}
    assert {group["name"] for group in optimizer.param_groups} == names
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing learns"):
        build_optimizer(model, [], OptimizerSettings(1e-4))


def test_each_part_learns_at_its_own_rate(micro: str) -> None:
    model, projection = depth_anything(micro), nn.Linear(2, 2)
    settings = OptimizerSettings(5e-6, lr_factors=LrFactors(encoder=1, decoder=10, head=3))
    optimizer = build_optimizer(model, list(projection.parameters()), settings)
    for factor in (1.0, 0.25):
        set_learning_rate(optimizer, factor)
        rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert {rate[id(p)] for p in model.encoder.parameters()} == {5e-6 * factor}
        assert {round(rate[id(p)], 12) for p in model.decoder.parameters()} == {5e-5 * factor}
        assert {round(rate[id(p)], 12) for p in projection.parameters()} == {round(1.5e-5 * factor, 12)}
    assert all(group["weight_decay"] == 0.01 for group in optimizer.param_groups)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_first_step_of_adam_is_the_rate(micro: str, name: str) -> None:
    torch.manual_seed(0)
    model = depth_anything(micro)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    settings = OptimizerSettings(1e-4, name, lr_factors=TENFOLD, weight_decay=0.0)
    optimizer = build_optimizer(model, [], settings)
    set_learning_rate(optimizer, 0.5)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    optimizer.step()  # Adam's first step is the rate itself, whatever the gradient
    for name, parameter in model.named_parameters():
        expected = 5e-5 if name.startswith("encoder") else 5e-4
        moved = (before[name] - parameter.detach()).double()
        torch.testing.assert_close(moved, torch.full_like(moved, expected), rtol=5e-3, atol=2e-7)


@pytest.mark.parametrize(
    "name, moved",
    [
        ("adamw", 0.1 * (0.5 * 2.0 + 1)),  # decay of the weight itself, then a step of 1
        ("adam", 0.1 * 1),  # decay is part of the gradient, whose size does not matter
        ("sgd", 0.1 * (3.0 + 0.5 * 2.0)),
    ],
)
def test_weight_decay_by_hand(name: str, moved: float) -> None:
    head = nn.Parameter(torch.tensor([2.0]))
    settings = OptimizerSettings(0.1, name, weight_decay=0.5)
    optimizer = build_optimizer(nn.Module(), [head], settings)
    head.grad = torch.tensor([3.0])
    optimizer.step()
    assert float(2.0 - head.detach()) == pytest.approx(moved, rel=1e-5)


def test_momentum_of_sgd_by_hand() -> None:
    head = nn.Parameter(torch.tensor([2.0]))
    optimizer = build_optimizer(
        nn.Module(), [head], OptimizerSettings(0.1, "sgd", weight_decay=0.0, momentum=0.5)
    )
    for _ in range(2):
        head.grad = torch.tensor([1.0])
        optimizer.step()
    assert float(head.detach()) == pytest.approx(2.0 - 0.1 * 1 - 0.1 * 1.5)


def factors(steps: int, **settings: float | str) -> list[float]:
    return [lr_factor(step, steps, ScheduleSettings(**settings)) for step in range(steps)]


def test_linear_decay_by_hand() -> None:
    assert factors(4) == [1.0, 0.75, 0.5, 0.25]
    assert lr_factor(99_999, 100_000, ScheduleSettings()) == pytest.approx(1e-5)


def test_warm_up_rises_linearly_into_the_decay() -> None:
    assert factors(10, warmup_steps=3) == pytest.approx(
        [1 / 4, 0.9 * 2 / 4, 0.8 * 3 / 4, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], rel=1e-12
    )


def test_power_of_poly_by_hand() -> None:
    assert factors(4, power=2.0)[3] == pytest.approx(1 / 16)
    assert factors(4, power=0.5)[2] == pytest.approx(math.sqrt(0.5))


def test_cosine_by_hand() -> None:
    assert factors(4, name="cosine") == pytest.approx([1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4])


def test_constant_with_warm_up_by_hand() -> None:
    assert factors(4, name="constant", warmup_steps=1) == [0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("steps", [1, 2, 7, 100, 1001])
@pytest.mark.parametrize("pct_start, div, final_div", [(0.3, 25, 1e4), (0.7, 1, 1e4), (0.05, 10, 2)])
def test_onecycle_is_that_of_torch(steps: int, pct_start: float, div: float, final_div: float) -> None:
    settings = {"pct_start": pct_start, "div_factor": div, "final_div_factor": final_div}
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=steps, cycle_momentum=False, **settings
    )
    expected = []
    for _ in range(steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < steps:
            scheduler.step()
    assert factors(steps, name="onecycle", **settings) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_rows_of_the_tables_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEDULES, "half", lambda step, total_steps, settings: 0.5)
    monkeypatch.setitem(OPTIMIZERS, "plain", lambda groups, settings: torch.optim.SGD(groups, settings.lr))
    assert factors(2, name="half") == [0.5, 0.5]
    optimizer = build_optimizer(nn.Module(), [nn.Parameter(torch.zeros(1))], OptimizerSettings(0.5, "plain"))
    assert type(optimizer) is torch.optim.SGD


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_cycled_momentum_is_that_of_torch(name: str) -> None:
    cycle = {"pct_start": 0.7, "div_factor": 1.0, "final_div_factor": 1e4}
    settings = ScheduleSettings(name="onecycle", momentum=(0.85, 0.95), **cycle)
    ours, theirs = (
        build_optimizer(nn.Module(), [nn.Parameter(torch.zeros(1))], OptimizerSettings(1.0, name))
        for _ in "ab"
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(theirs, max_lr=1.0, total_steps=20, **cycle)
    for step in range(20):
        set_learning_rate(ours, lr_factor(step, 20, settings), momentum_of(step, 20, settings))
        for key in ("lr", "betas" if name == "adamw" else "momentum"):
            mine, wanted = ours.param_groups[0][key], theirs.param_groups[0][key]
            assert mine == pytest.approx(wanted, rel=1e-9, abs=1e-12), (step, key)
        theirs.step()
        if step < 19:
            scheduler.step()
    assert momentum_of(3, 20, ScheduleSettings(name="onecycle")) is None
    assert momentum_of(3, 20, ScheduleSettings(momentum=(0.85, 0.95))) is None, "poly"
