"""Parameter groups and the learning rate as a function of the step."""

from collections.abc import Sequence

import torch
from torch import nn

from depthany.models.model import DenseModel


def build_optimizer(
    model: DenseModel,
    extra: Sequence[nn.Parameter],
    lr: float,
    decoder_lr_factor: float,
    weight_decay: float,
    betas: tuple[float, float],
) -> torch.optim.AdamW:
    """AdamW with two groups: the encoder, and the decoder at `decoder_lr_factor` times its rate (paper,
    section 4.1).

    Args:
        extra: further trained parameters (a stage's projection), learnt at the decoder's rate.
    """
    encoder = list(model.encoder.parameters())
    rest = [*model.decoder.parameters(), *model.head.parameters(), *extra]
    trained = {id(parameter) for parameter in [*encoder, *rest]}
    assert trained >= {id(parameter) for parameter in model.parameters()}, "a parameter is in no group"
    groups = [
        {"params": encoder, "name": "encoder", "base_lr": lr},
        {"params": rest, "name": "decoder", "base_lr": lr * decoder_lr_factor},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, weight_decay=weight_decay, fused=_fused(encoder))


def schedule(step: int, total_steps: int, warmup_steps: int = 0, decay_power: float = 1.0) -> float:
    """Factor on the base learning rates: linear warm-up, then decay to 0 at `total_steps` (paper: linear).

    Args:
        step: steps already done, 0 ... total_steps - 1.
        decay_power: 1 is linear; the author's other code uses 0.9.
    """
    decay = (1.0 - step / total_steps) ** decay_power
    return decay * min(1.0, (step + 1) / (warmup_steps + 1))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's rate to `factor` times its base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def _fused(parameters: Sequence[nn.Parameter]) -> bool:
    return parameters[0].device.type in ("cpu", "cuda")  # one pass over memory per step instead of several
