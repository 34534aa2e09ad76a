"""How a timm model returns four levels of features: which of them, at which strides, at any image size."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import timm
import torch
from torch import Tensor, nn

from depthany.models.encoder import Four
from depthany.models.taps import tapped_blocks

STAGE_STRIDES = (4, 8, 16, 32)  # pixels per cell of the four levels of a network of stages
STAGES = ("stages", "blocks", "layers")  # what timm's models call the list of their stages or blocks
DPT_FEATURES = ((256, 32), (512, 64), (768, 128), (1024, 256))  # largest width of the last level -> channels
WIDEST_DPT_FEATURES = 384
EXAMPLES = ("vit_small_patch16_dinov3", "convnext_tiny", "resnet50")


@dataclass(frozen=True)
class ModelLayout:
    """How a timm model returns four levels.

    Attributes:
        is_transformer: all levels have the same stride, and taps choose among them.
        arguments: for `timm.create_model`, so that the model takes images of any size.
        depth: how many levels the model has; for a transformer, its blocks.
        indices: the four levels that are taken by default, as numbers for `forward_intermediates`.
        widths, strides: channels and pixels per cell of the four levels, shallowest first.
        mean, std: mean and standard deviation of the RGB values in 0..1 that the pretrained weights expect.
    """

    is_transformer: bool
    arguments: dict[str, Any]
    depth: int
    indices: Four
    widths: Four
    strides: Four
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def levels(self, model: Any, image: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """Returns the levels [b c p q] with these numbers, of an image [b 3 h w] normalised by `mean`, `std`.

        The final norm of a transformer is applied to each level; CLS and register tokens are dropped.
        """
        if not self.is_transformer:
            return model.forward_intermediates(image, indices=indices, intermediates_only=True)
        tokens = model.forward_intermediates(
            image, indices=indices, norm=True, output_fmt="NLC", intermediates_only=True
        )  # four of [b p*q c]
        grid = [side // stride for side, stride in zip(image.shape[-2:], self.strides)]
        return [level.transpose(1, 2).unflatten(2, grid) for level in tokens]  # channels last in memory

    def prune(self, model: Any, indices: Sequence[int]) -> list[int]:
        """Removes what no level depends on from a model; returns the numbers of the levels in the rest."""
        return list(
            model.prune_intermediate_layers(
                list(indices), prune_norm=not self.is_transformer, prune_head=True
            )
        )

    def dpt_widths(self) -> tuple[int, Four]:
        """Returns channels of the fusion path and of the four levels of a DPT decoder that suits the widths.

        They are Depth Anything's for the widths of DINOv2. The levels of a network of stages keep their
        widths up to 1024.
        """
        c1, c2, c3, c4 = (min(width, 1536 if self.is_transformer else 1024) for width in self.widths)
        features = next((count for widest, count in DPT_FEATURES if c4 <= widest), WIDEST_DPT_FEATURES)
        if not self.is_transformer or c4 > 1024:
            return features, (c1, c2, c3, c4)
        if c4 > 768:
            return features, (c4 // 4, c4 // 2, c4, c4)
        return features, (c4 // 8, c4 // 4, c4 // 2, c4)


@cache
def inspect_model(name: str) -> ModelLayout:
    """Returns the layout of a timm model, found on a copy without memory for weights.

    Raises:
        ValueError: the model is unknown, has no four levels or does not take images of any size.
    """
    _check_name(name)
    with torch.inference_mode(False), torch.enable_grad(), torch.device("meta"):
        model: Any = timm.create_model(name, pretrained=False, num_classes=0)
        arguments: dict[str, Any] = {"dynamic_img_size": True} if hasattr(model, "dynamic_img_size") else {}
        if arguments:
            model = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
        layout = _layout(name, model, arguments)
        _check_levels(name, model, layout)
    return layout


def _layout(name: str, model: Any, arguments: dict[str, Any]) -> ModelLayout:
    info = list(model.feature_info)
    strides = [level["reduction"] for level in info]
    is_transformer = hasattr(model, "blocks") and len(set(strides)) == 1
    if is_transformer:
        indices = tapped_blocks("v1", len(info), name)
    elif set(STAGE_STRIDES) <= set(strides):
        deepest = {stride: index for index, stride in enumerate(strides)}
        indices = _four(deepest[stride] for stride in STAGE_STRIDES)
    else:
        raise ValueError(
            f"{name} has levels of strides {', '.join(str(stride) for stride in dict.fromkeys(strides))}: "
            f"expected a transformer with `blocks`, or {', '.join(map(str, STAGE_STRIDES))}"
        )
    return ModelLayout(
        is_transformer,
        arguments,
        len(info),
        indices,
        widths=_four(info[index]["num_chs"] for index in indices),
        strides=_four(strides[index] for index in indices),
        mean=tuple(model.pretrained_cfg["mean"]),
        std=tuple(model.pretrained_cfg["std"]),
    )


def _check_levels(name: str, model: nn.Module, layout: ModelLayout) -> None:
    """Runs a model without memory on an image; raises ValueError if it cannot be an encoder."""
    indices = layout.prune(model, layout.indices)
    h, w = 2 * layout.strides[-1], 3 * layout.strides[-1]
    expected = [(2, c, h // stride, w // stride) for c, stride in zip(layout.widths, layout.strides)]
    try:
        levels = layout.levels(model, torch.empty(2, 3, h, w, device="meta"), indices)
    except Exception as error:  # every timm model refuses a size in its own way
        reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
        raise ValueError(
            f"{name} does not take images of any size; for ({h}, {w}) it says: {reason}"
        ) from error
    found = [tuple(level.shape) for level in levels]
    if found != expected:
        raise ValueError(f"{name} makes levels {found} of an image of ({h}, {w}), expected {expected}")
    torch.stack([level.sum() for level in levels]).sum().backward()
    unused = [weight for weight, tensor in model.named_parameters() if tensor.grad is None]
    if unused:
        raise ValueError(f"{name} has {len(unused)} weights that no level needs: {', '.join(unused[:3])} ...")


def residual_blocks(model: Any) -> list[nn.Module]:
    """Returns the transformer or residual blocks of a timm model; none where its stages have other names."""
    lists = (nn.Sequential, nn.ModuleList)
    if hasattr(model, "layer1"):  # ResNet and its kin
        stages = [model.layer1, model.layer2, model.layer3, model.layer4]
    else:
        found = (getattr(model, name, None) for name in STAGES)
        stages = next((list(each) for each in found if isinstance(each, lists)), [])
    blocks: list[nn.Module] = []
    for stage in stages:
        inner = getattr(stage, "blocks", stage)
        blocks += list(inner) if isinstance(inner, lists) else [inner]
    return blocks


def _check_name(name: str) -> None:
    """Raises ValueError if timm has no such model, or no such tag of pretrained weights."""
    known = timm.list_models()
    architecture, _, tag = name.partition(".")
    if architecture not in known:
        close = difflib.get_close_matches(architecture, known, n=4) or list(EXAMPLES)
        raise ValueError(f"unknown timm model {name!r}; did you mean {', '.join(close)}?")
    tags = [each.partition(".")[2] for each in timm.list_models(f"{architecture}.*", pretrained=True)]
    if tag and tag not in tags:
        raise ValueError(
            f"timm has no weights {name!r}: leave out {tag!r}, or choose from {', '.join(tags) or 'none'}"
        )


def _four(values: Iterable[int]) -> Four:
    first, second, third, fourth = values
    return first, second, third, fourth
