"""Puts BatchNorm into the convolutions before it: the same function with fewer weights, for exports."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights


@torch.no_grad()
def fold_batch_norm(model: nn.Module, image: Tensor) -> list[str]:
    """Changes a model in eval mode for good; returns the names of the BatchNorm layers that are gone.

    A layer is folded if its input is the output of a convolution; an activation of its own, as timm's layers
    have it, stays in its place.

    Args:
        image: [b 3 h w], an input on which the model runs to see which layer follows which.
    """
    found: dict[nn.Module, nn.Conv2d] = {}
    outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # the tensors are kept, so that no number comes twice

    def after_conv(module: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        outputs[id(output)] = module, output

    def before_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if id(inputs[0]) in outputs:
            found[module] = outputs[id(inputs[0])][0]

    hooks = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(after_conv))
        elif isinstance(module, _BatchNorm):
            hooks.append(module.register_forward_pre_hook(before_norm))
    try:
        model(image)
    finally:
        for hook in hooks:
            hook.remove()
    names = {module: name for name, module in model.named_modules()}
    for norm, conv in found.items():
        _fold(conv, norm)
        parent, _, last = names[norm].rpartition(".")
        setattr(model.get_submodule(parent), last, _activation(norm))
    return [names[norm] for norm in found]


def _fold(conv: nn.Conv2d, norm: Any) -> None:
    assert not norm.training, "statistics of a batch cannot be folded"
    weight, bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    conv.weight, conv.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)


def _activation(norm: Any) -> nn.Module:
    """Returns the activation of timm's `BatchNormAct2d`; the identity for a plain BatchNorm."""
    activation: nn.Module = getattr(norm, "act", nn.Identity())
    return activation
