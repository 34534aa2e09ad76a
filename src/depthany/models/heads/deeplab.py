"""DeepLab V3: classes from the last level, with global pooling and, where chosen, atrous convolutions.

Source: Chen et al. 2017 (arXiv 1706.05587) 3.3. Two networks of that name exchange weights with this one:
Google's TensorFlow code, whose MobileNetV2 has no atrous branch (Sandler et al. 2018, arXiv 1801.04381, table
7), and torchvision, whose parts are used for both.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import ASPPConv, ASPPPooling

from depthany.models.encoder import Four
from depthany.models.heads.classes import ClassesHead
from depthany.models.heads.head import float32_conv
from depthany.system.choices import require_choice, require_number, require_share

RATES_STRIDE = 16  # pixels per cell of the level that `rates` are given for
STYLES = ("google", "torchvision")


class DeepLabHead(ClassesHead):
    """Branches of the last level side by side (global pooling, 1x1, dilated 3x3), projected to classes.

    Args:
        features: channels of the encoder's levels.
        strides: pixels per cell of the encoder's levels.
        class_names, class_colours, align_corners: see `ClassesHead`. TensorFlow's code has
            align_corners=True, torchvision False.
        style: "google": pooling is the first branch, and classes follow the projection; "torchvision":
            pooling is the last branch, and a 3x3 convolution follows the projection.
        rates: dilations of the 3x3 branches at 16 pixels per cell; twice as large at 8. None of them, as
            Google's MobileNetV2 has it, or 6, 12, 18.
        width: channels of the branches.
        dropout: share of activations that training drops before the classes, from torch's global generator.
            Google keeps .9; torchvision and transformers' configuration say otherwise.
        bn_momentum: share of the batch in BatchNorm's running statistics: .0003 in Google's training of
            30,000 steps, .1 in PyTorch.

    Raises:
        ValueError: an argument is not one of its choices, or see `ClassesHead`.
    """

    takes_levels: ClassVar[bool] = True
    least_images: ClassVar[int] = 2

    def __init__(
        self,
        features: Four,
        strides: Four,
        class_names: Sequence[str] | None = None,
        class_colours: Sequence[Sequence[int]] | None = None,
        align_corners: bool = True,
        style: str = "google",
        rates: Sequence[int] = (),
        width: int = 256,
        dropout: float = 0.1,
        bn_momentum: float = 0.1,
    ) -> None:
        super().__init__(class_names, class_colours, align_corners)
        require_choice("style of DeepLab", style, STYLES)
        require_number("width", width, whole=True)
        if width < 1:
            raise ValueError(f"width={width}: expected 1 or more channels")
        require_share("dropout", dropout)
        require_share("bn_momentum", bn_momentum)
        is_list = isinstance(rates, Sequence) and not isinstance(rates, str)
        if not is_list or not all(isinstance(rate, int) and rate >= 1 for rate in rates):
            raise ValueError(f"rates={rates}: expected dilations of 1 or more, such as [6,12,18], or []")
        self.config |= {
            "style": style,
            "rates": list(rates),
            "width": width,
            "dropout": dropout,
            "bn_momentum": bn_momentum,
        }
        channels, scale = features[-1], rates_factor(strides[-1])
        pooling = Pooling(channels, width, align_corners)
        convolutions: list[nn.Module] = [_conv_bn_relu(channels, width, 1)]
        convolutions += [ASPPConv(channels, width, max(1, round(rate * scale))) for rate in rates]
        branches: list[nn.Module] = (
            [pooling, *convolutions] if style == "google" else [*convolutions, pooling]
        )
        self.branches = nn.ModuleList(branches)
        self.project = _conv_bn_relu(width * len(branches), width, 1)
        self.dropout = nn.Dropout(dropout)
        self.refine = _conv_bn_relu(width, width, 3) if style == "torchvision" else nn.Identity()
        self.classifier = nn.Conv2d(width, len(self.quantity.class_names), 1)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = bn_momentum

    def logits(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Returns logits [b k p q] of `pyramid`, the encoder's four levels [b c p q].

        Raises:
            ValueError: one image in training mode, whose pooled features BatchNorm cannot normalise unless it
                keeps its statistics.
        """
        level = pyramid[-1]
        pooling = next(branch for branch in self.branches if isinstance(branch, Pooling))
        if pooling.uses_batch and len(level) < self.least_images:
            raise ValueError(
                f"the head deeplab normalises pooled features over the images of a batch, but this batch of "
                f"training has {len(level)}: raise batch_size, or lower accumulate, to {self.least_images} "
                "images or more per process, or set stage.batch_norm=frozen"
            )
        hidden = torch.cat([branch(level) for branch in self.branches], dim=1)  # [b width*n p q]
        hidden = self.refine(self.dropout(self.project(hidden)))
        with torch.autocast(hidden.device.type, enabled=False):
            return float32_conv(self.classifier, hidden)

    def float32_layers(self) -> Sequence[nn.Module]:
        """The last convolution, whose logits are compared with one another."""
        return (self.classifier,)


class Pooling(ASPPPooling):
    """torchvision's branch of global pooling, enlarged with TensorFlow's corners where the logits are.

    The enlarged value is the same everywhere up to rounding, in which the two differ.
    """

    def __init__(self, channels: int, width: int, align_corners: bool) -> None:
        super().__init__(channels, width)
        self.align_corners = align_corners

    @property
    def uses_batch(self) -> bool:
        """Whether it normalises by the statistics of the batch."""
        return any(layer.training for layer in self if isinstance(layer, nn.BatchNorm2d))

    def forward(self, x: Tensor) -> Tensor:
        """Returns [b width p q] of x, a level [b c p q]."""
        pooled = x
        for layer in self:
            pooled = layer(pooled)  # [b width 1 1] from the first one on
        return F.interpolate(pooled, x.shape[-2:], mode="bilinear", align_corners=self.align_corners)


def rates_factor(stride: int) -> float:
    """Returns what `rates` are multiplied by: the power of two nearest to 16 / stride; 1 for a ViT's 14."""
    return float(2 ** round(math.log2(RATES_STRIDE / stride)))


def _conv_bn_relu(channels: int, width: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())
