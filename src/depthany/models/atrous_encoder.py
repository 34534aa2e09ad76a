"""Convolutional trunks with a chosen output stride: MobileNetV2 as Google's DeepLab has it, and ResNets.

Source: Chen et al. 2017 (arXiv 1706.05587) 3.2: the last stages keep their resolution, and their kernels are
dilated. The networks are timm's. With padding "same", bn_eps 1e-3 and inputs in -1..1, `mobilenetv2_100` is
the trunk of Google's DeepLab V3 (Sandler et al. 2018, arXiv 1801.04381) and of transformers' MobileNetV2.
"""

import re
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import timm
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from depthany.models.encoder import Encoder, Four
from depthany.models.preprocess import Preprocessing
from depthany.models.timm_layout import STAGE_STRIDES, residual_blocks
from depthany.system.choices import require_choice

OUTPUT_STRIDES = (8, 16, 32)
PADDINGS = ("same", "symmetric")
RESNETS = r"resnet(18|34|50|101|152)"
DPT_FEATURES = 64  # default width of a DPT decoder on these levels


class AtrousEncoder(Encoder):
    """A CNN whose last stages are dilated; it takes images of any size.

    BatchNorm normalises by the statistics of the batch in training mode, as in `TimmEncoder`.

    Args:
        model: timm's name of a MobileNetV2 or a ResNet, such as mobilenetv2_100 (the number is the width
            multiplier in percent) or resnet50. The weights are random; nothing is downloaded.
        output_stride: pixels per cell of the last level; kernels of later stages are dilated to keep it.
        padding: padding of strided convolutions, which matters for even sizes: "same" pads the rest on the
            right and below, as TensorFlow does; "symmetric" pads both sides alike, as PyTorch does. Both are
            equal for sides of output_stride * n + 1. ResNets have only "symmetric".
        bn_eps: added to BatchNorm's variance: 1e-3 in Google's trunk, 1e-5 in timm's and torchvision's.
        bn_momentum: share of the batch in BatchNorm's running statistics: .0003 in Google's training of
            30,000 steps, .1 in PyTorch.
        mean, std: values of the normalisation, RGB in 0..1; .5 and .5 give Google's -1..1.

    Raises:
        ValueError: the model is unknown, or an argument is not one of its choices.
    """

    def __init__(
        self,
        model: str = "mobilenetv2_100",
        output_stride: int = 16,
        padding: str = "same",
        bn_eps: float = 1e-3,
        bn_momentum: float = 0.1,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        _check(model, output_stride, padding, bn_eps)
        self.config = {
            "model": model,
            "output_stride": output_stride,
            "padding": padding,
            "bn_eps": bn_eps,
            "bn_momentum": bn_momentum,
            "mean": [float(each) for each in mean],
            "std": [float(each) for each in std],
        }
        self.label, self.output_stride, self.padding = model, output_stride, padding
        options: dict[str, Any] = {"norm_layer": partial(nn.BatchNorm2d, eps=bn_eps, momentum=bn_momentum)}
        if is_mobilenet(model):
            options = {"pad_type": "same" if padding == "same" else ""}
            options |= {"bn_eps": bn_eps, "bn_momentum": bn_momentum}
        timm_model: Any = timm.create_model(
            model.partition(".")[0], pretrained=False, num_classes=0, output_stride=output_stride, **options
        )
        info = list(timm_model.feature_info)
        self.indices = list(range(len(info) - 4, len(info)))
        self.widths = _four(info[index]["num_chs"] for index in self.indices)
        self.strides = _four(min(stride, output_stride) for stride in STAGE_STRIDES)
        self.preprocessing = Preprocessing(1, _colour("mean", mean), _colour("std", std))
        self.dpt_widths = DPT_FEATURES, self.widths
        timm_model.prune_intermediate_layers(self.indices, prune_norm=True, prune_head=True)
        self.timm_model: Any = timm_model
        self.blocks = residual_blocks(timm_model)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Returns four levels [b c p q], shallowest first; p = h / stride of the level, rounded up.

        Args:
            image: [b 3 h w] RGB, normalised as `preprocessing` says.
        """
        levels: list[Tensor] = self.timm_model.forward_intermediates(
            image, indices=self.indices, intermediates_only=True
        )
        return levels

    @property
    def activation_checkpointing(self) -> bool:
        """Always False: BatchNorm would update its running statistics twice in a step."""
        return False

    @activation_checkpointing.setter
    def activation_checkpointing(self, enable: bool) -> None:
        if enable:
            raise ValueError(
                f"activation_checkpointing=true: {self.label} has BatchNorm, which would update its running "
                "statistics twice in a step: set activation_checkpointing=false"
            )

    def unused_names(self) -> set[str]:
        """Returns the names of the parts of timm's whole model that no level depends on."""
        with torch.device("meta"):
            whole = timm.create_model(self.label.partition(".")[0], pretrained=False)
        return whole.state_dict().keys() - self.timm_model.state_dict().keys()

    def is_symmetric_at(self, size: tuple[int, int]) -> bool:
        """Whether both paddings give the same levels for images of `size` (h, w)."""
        return all(side % self.output_stride == 1 for side in size)


def is_mobilenet(model: str) -> bool:
    """Whether a name of timm is that of a MobileNetV2."""
    return model.startswith("mobilenetv2_")


def pad_symmetrically(module: nn.Module) -> None:
    """Replaces TensorFlow's padding by one independent of the image's size; see `is_symmetric_at`."""
    for child in module.modules():
        if isinstance(child, Conv2dSame):  # a Conv2d with another forward
            (kernel, _), (step, _) = child.kernel_size, child.dilation
            child.padding = ((kernel - 1) // 2 * step,) * 2
            child.forward = partial(nn.Conv2d.forward, child)  # type: ignore[method-assign]


def _check(model: str, output_stride: int, padding: str, bn_eps: float) -> None:
    known = [name for name in timm.list_models() if is_mobilenet(name) or re.fullmatch(RESNETS, name)]
    require_choice("model of an atrous encoder", model.partition(".")[0], known)
    if output_stride not in OUTPUT_STRIDES:
        raise ValueError(f"output_stride={output_stride}: expected {', '.join(map(str, OUTPUT_STRIDES))}")
    require_choice("padding", padding, PADDINGS)
    if padding == "same" and not is_mobilenet(model):
        raise ValueError(f"padding=same: {model} has only padding=symmetric, as published")
    if not 0 < bn_eps < 1:
        raise ValueError(f"bn_eps={bn_eps}: expected more than 0, such as 1e-3 (Google) or 1e-5 (timm)")


def _colour(key: str, values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) != 3 or (key == "std" and min(values) <= 0):
        raise ValueError(f"{key}={list(values)}: expected three numbers, of red, green and blue")
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _four(values: Iterable[int]) -> Four:
    first, second, third, fourth = values
    return first, second, third, fourth
