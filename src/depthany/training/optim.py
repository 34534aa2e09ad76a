"""Optimizer, parameter groups, and the learning rate as a function of the step."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from depthany.models.heads.head import Head
from depthany.system.rules import setting


def adamw(groups: list[dict[str, Any]], settings: "OptimizerSettings") -> torch.optim.Optimizer:
    """Loshchilov and Hutter 2019 (arXiv 1711.05101); reads betas and weight_decay."""
    betas = (settings.betas[0], settings.betas[1])
    return torch.optim.AdamW(
        groups, settings.lr, betas, weight_decay=settings.weight_decay, fused=_fused(groups)
    )


def adam(groups: list[dict[str, Any]], settings: "OptimizerSettings") -> torch.optim.Optimizer:
    """Kingma and Ba 2015 (arXiv 1412.6980); reads betas and weight_decay (as an L2 term)."""
    betas = (settings.betas[0], settings.betas[1])
    return torch.optim.Adam(
        groups, settings.lr, betas, weight_decay=settings.weight_decay, fused=_fused(groups)
    )


def sgd(groups: list[dict[str, Any]], settings: "OptimizerSettings") -> torch.optim.Optimizer:
    """Stochastic gradient descent; reads momentum and weight_decay (as an L2 term)."""
    return torch.optim.SGD(
        groups, settings.lr, settings.momentum, weight_decay=settings.weight_decay, fused=_fused(groups)
    )


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], "OptimizerSettings"], torch.optim.Optimizer]] = {
    "adamw": adamw,
    "adam": adam,
    "sgd": sgd,
}


def poly(step: int, total_steps: int, settings: "ScheduleSettings") -> float:
    """(1 - step / total_steps) ^ power: 1 is linear (Depth Anything V1); the author's other code uses 0.9."""
    return (1.0 - step / total_steps) ** settings.power


def cosine(step: int, total_steps: int, settings: "ScheduleSettings") -> float:
    """Half a cosine from 1 to 0. Source: Loshchilov and Hutter 2017 (arXiv 1608.03983) eq. 5, no restart."""
    return (1.0 + math.cos(math.pi * step / total_steps)) / 2


def constant(step: int, total_steps: int, settings: "ScheduleSettings") -> float:
    """1 at every step."""
    return 1.0


def onecycle(step: int, total_steps: int, settings: "ScheduleSettings") -> float:
    """Half a cosine up from 1 / div_factor to 1 over `pct_start` of the run, then one down.

    It ends at 1 / (div_factor * final_div_factor). `momentum_of` has the momentum that goes with it.
    Source: Smith and Topin 2018 (arXiv 1708.07120), as `torch.optim.lr_scheduler.OneCycleLR` has it with two
    phases.
    """
    start = 1.0 / settings.div_factor
    peak_step, last_step = settings.pct_start * total_steps - 1, total_steps - 1
    if step <= peak_step and peak_step > 0:
        return _cosine_between(start, 1.0, step / peak_step)
    return _cosine_between(
        1.0, start / settings.final_div_factor, (step - peak_step) / (last_step - peak_step)
    )


SCHEDULES: dict[str, Callable[[int, int, "ScheduleSettings"], float]] = {
    "poly": poly,
    "onecycle": onecycle,
    "cosine": cosine,
    "constant": constant,
}


@dataclass
class LrFactors:
    """Learning rate of each part of the model as a multiple of `optimizer.lr`."""

    encoder: float = setting(1.0, least=0)
    decoder: float = setting(1.0, least=0)
    head: float = setting(1.0, least=0)

    def __post_init__(self) -> None:
        if not any(vars(self).values()):
            raise ValueError("encoder=0 decoder=0 head=0: nothing would learn; set one of them above 0")


@dataclass
class OptimizerSettings:
    """The group `optimizer` of configs/train.yaml."""

    lr: float = setting(least=0)
    name: str = setting("adamw", choices=OPTIMIZERS)
    lr_factors: LrFactors = field(default_factory=LrFactors)
    weight_decay: float = setting(0.01, least=0)
    betas: tuple[float, float] = setting((0.9, 0.999), length=2)
    momentum: float = setting(0.9, least=0)
    clip_norm: float | None = setting(None, above=0)


@dataclass
class ScheduleSettings:
    """The group `schedule` of configs/train.yaml."""

    name: str = setting("poly", choices=SCHEDULES)
    warmup_steps: int = setting(0, least=0)
    power: float = setting(1.0)
    pct_start: float = setting(0.3, above=0, below=1)
    div_factor: float = setting(25.0, above=0)
    final_div_factor: float = setting(1e4, above=0)
    momentum: tuple[float, float] | None = setting(None, length=2, least=0, below=1)


def build_optimizer(
    model: nn.Module, extra: Sequence[nn.Parameter], settings: "OptimizerSettings"
) -> torch.optim.Optimizer:
    """Builds the optimizer with one group for each part of the model that learns.

    Args:
        model: its children are the parts, named as in `LrFactors`. A parameter without gradient is in no
            group, and a part without any that learns has none. Layers of the head that belong to a relative
            model (`Head.relative_layers`) learn at the decoder's rate.
        extra: further trained parameters, those of a stage; they learn at the head's rate.
    """
    factors = vars(settings.lr_factors)
    parts: dict[str, list[nn.Parameter]] = {name: [] for name in factors}
    for name, part in model.named_children():
        assert name in factors, f"{name} of {type(model).__name__} has no learning-rate factor"
        parts[name] += [parameter for parameter in part.parameters() if parameter.requires_grad]
    head = getattr(model, "head", None)
    of_relative = head.relative_layers() if isinstance(head, Head) else ()
    relative = {id(parameter) for layer in of_relative for parameter in layer.parameters()}
    parts["decoder"] += [parameter for parameter in parts["head"] if id(parameter) in relative]
    parts["head"] = [parameter for parameter in parts["head"] if id(parameter) not in relative]
    parts["head"] += extra
    groups = [
        {"params": parameters, "name": name, "base_lr": settings.lr * factors[name]}
        for name, parameters in parts.items()
        if parameters
    ]
    if not groups:
        raise ValueError("nothing learns: every part of the model is frozen; lower model.freeze")
    return OPTIMIZERS[settings.name](groups, settings)


def clip_gradients(parameters: Sequence[nn.Parameter], clip_norm: float | None) -> Tensor:
    """Scales gradients down to a norm of at most `clip_norm`; returns their norm [] before scaling.

    None scales nothing, and on a GPU saves a pass over the gradients, whose norm comes from few kernels.
    """
    if clip_norm is None and parameters[0].device.type != "cpu":
        return torch.nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])
    limit = clip_norm if clip_norm is not None else float("inf")
    return torch.nn.utils.clip_grad_norm_(parameters, limit)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float, momentum: float | None = None) -> None:
    """Sets each group's rate to `factor` times its base rate, and its momentum (Adam's beta1) if given."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
        if momentum is not None and "betas" in group:
            group["betas"] = (momentum, *group["betas"][1:])
        elif momentum is not None:
            group["momentum"] = momentum


def lr_factor(step: int, total_steps: int, settings: "ScheduleSettings") -> float:
    """Returns the factor on the base learning rates: the schedule, times a linear warm-up.

    Args:
        step: steps already done, 0 ... total_steps - 1.
        total_steps: length of the run in optimizer steps.
    """
    factor = SCHEDULES[settings.name](step, total_steps, settings)
    return factor * min(1.0, (step + 1) / (settings.warmup_steps + 1))


def momentum_of(step: int, total_steps: int, settings: "ScheduleSettings") -> float | None:
    """Returns the momentum of a step, or None where it is not cycled.

    Over the two phases of `onecycle` it goes from the larger number of `schedule.momentum` to the smaller one
    and back, each on half a cosine. Source: as `onecycle`.
    """
    if settings.momentum is None or settings.name != "onecycle":
        return None
    least, most = settings.momentum
    peak_step, last_step = settings.pct_start * total_steps - 1, total_steps - 1
    if step <= peak_step and peak_step > 0:
        return _cosine_between(most, least, step / peak_step)
    return _cosine_between(least, most, (step - peak_step) / (last_step - peak_step))


def _cosine_between(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1.0 + math.cos(math.pi * share))


def _fused(groups: list[dict[str, Any]]) -> bool:
    """Whether torch can take the step in one pass over memory on the device of these parameters."""
    return groups[0]["params"][0].device.type in ("cpu", "cuda")
