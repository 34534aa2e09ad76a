"""Classes of pixels: the contract of such heads, the linear probe, and the head on DPT.

Legend: `b` images, `k` classes, `c` channels, `h w` pixels, `p q` cells.
"""

from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depthany.models.dpt import Pyramid
from depthany.models.encoder import Four
from depthany.models.heads.head import Head, float32_conv
from depthany.models.output import Prediction, Quantity
from depthany.system.choices import require_list, require_share

MOST_CLASSES = 255  # 255 in a mask is a pixel to ignore
IGNORED = 255


class ClassesHead(Head):
    """Base class of the heads that predict class logits. A subclass computes them in `logits`.

    Args:
        class_names: names of the classes, in the order of the channels; None only in settings, where training
            takes those of the labeled sets.
        class_colours: RGB in 0..255 of each class, for pictures; None = none are given.
        align_corners: how logits are enlarged, here and to the size of an image: False, as nearly all
            segmentation code does it, or True, as DeepLab's TensorFlow code does. It is a property of the
            weights: another choice shifts the map by up to half a cell.

    Raises:
        ValueError: there is no class, or too many, or a name comes twice.
    """

    def __init__(
        self,
        class_names: Sequence[str] | None,
        class_colours: Sequence[Sequence[int]] | None,
        align_corners: bool,
    ) -> None:
        super().__init__()
        require_list("class_names", class_names)
        require_list("class_colours", class_colours)
        names = tuple(map(str, class_names or ()))
        if not 0 < len(names) <= MOST_CLASSES or len(set(names)) < len(names):
            raise ValueError(
                f"class_names={list(names)}: expected 1 to {MOST_CLASSES} different names; training takes "
                "those of its labeled sets"
            )
        colours = tuple(map(_colour, class_colours or ()))
        self.quantity = Quantity("classes", class_names=names, class_colours=colours)
        self.align_corners = align_corners
        self.config: dict[str, Any] = {
            "class_names": list(names),
            "class_colours": [*map(list, colours)] or None,
            "align_corners": align_corners,
        }

    def forward(self, pyramid: Any, size: tuple[int, int]) -> Prediction:
        """Returns logits [b k h w] float32 of `size` (h, w)."""
        logits = self.logits(pyramid).float()
        return Prediction(F.interpolate(logits, size, mode="bilinear", align_corners=self.align_corners))

    def logits(self, pyramid: Any) -> Tensor:
        """Returns logits [b k p q] at the resolution of the head."""
        raise NotImplementedError(f"{type(self).__name__}.logits")


class LinearClassesHead(ClassesHead):
    """BatchNorm and a 1x1 convolution on patch tokens: the linear probe of DINOv2.

    Source: Oquab et al. 2023 (arXiv 2304.07193) section 7.4: `BNHead` of its evaluation; weights start from a
    normal distribution of 0.01, as in mmsegmentation.

    Args:
        features: channels of the encoder's levels.
        class_names, class_colours, align_corners: see `ClassesHead`.
        levels: how many of the encoder's levels are concatenated, the deepest ones: 1 ("lin" of DINOv2), or 4
            ("+ms", which also has test-time scales). They must have one stride.
        dropout: share of activations that training drops before BatchNorm, from torch's global generator.
        strides: pixels per cell of the encoder's levels; None: they are equal.

    Raises:
        ValueError: `levels` is not 1 to 4, the strides of these levels differ, or see `ClassesHead`.
    """

    takes_levels: ClassVar[bool] = True

    def __init__(
        self,
        features: Four,
        class_names: Sequence[str] | None = None,
        class_colours: Sequence[Sequence[int]] | None = None,
        align_corners: bool = False,
        levels: int = 1,
        dropout: float = 0.0,
        strides: Four | None = None,
    ) -> None:
        super().__init__(class_names, class_colours, align_corners)
        require_share("dropout", dropout)
        if levels not in (1, 2, 3, 4):
            raise ValueError(f"levels={levels}: expected 1 to 4, the deepest levels of the encoder")
        if strides is not None and len(set(strides[-levels:])) > 1:
            most, cells = sum(stride == strides[-1] for stride in strides), ", ".join(map(str, strides))
            raise ValueError(
                f"model.head.levels={levels}: the encoder's levels have {cells} pixels per cell, but only "
                f"levels of one size can be concatenated: pass model.head.levels={most}"
            )
        self.config |= {"levels": levels, "dropout": dropout}
        self.levels = levels
        self.dropout = nn.Dropout2d(dropout)
        self.norm = nn.BatchNorm2d(sum(features[-levels:]))
        self.conv = nn.Conv2d(self.norm.num_features, len(self.quantity.class_names), 1)
        nn.init.normal_(self.conv.weight, std=0.01)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def logits(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Returns logits [b k p q] of `pyramid`, the encoder's four levels [b c p q]."""
        tokens = torch.cat(list(pyramid[-self.levels :]), dim=1)  # [b c p q]
        hidden = self.norm(self.dropout(tokens))
        with torch.autocast(hidden.device.type, enabled=False):
            return float32_conv(self.conv, hidden)

    def float32_layers(self) -> Sequence[nn.Module]:
        """The convolution, whose logits are compared with one another."""
        return (self.conv,)


class DptClassesHead(ClassesHead):
    """Two convolutions on the finest map of a DPT decoder.

    Source: UniMatch-V2 (arXiv 2410.10777), by an author of Depth Anything: 3x3 to the same width, ReLU, 1x1
    to the classes; the branch for several classes of Depth Anything V1's own DPT is the same.

    Args:
        features: channels F of the finest fused map.
        class_names, class_colours, align_corners: see `ClassesHead`.
    """

    def __init__(
        self,
        features: int,
        class_names: Sequence[str] | None = None,
        class_colours: Sequence[Sequence[int]] | None = None,
        align_corners: bool = True,
    ) -> None:
        super().__init__(class_names, class_colours, align_corners)
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, len(self.quantity.class_names), 1)

    def logits(self, pyramid: Pyramid) -> Tensor:
        """Returns logits [b k p q] at the size of the finest fused map."""
        hidden = F.relu(self.conv1(pyramid.fused[0]), inplace=True)  # [b F p q]
        with torch.autocast(hidden.device.type, enabled=False):
            return float32_conv(self.conv2, hidden)

    def float32_layers(self) -> Sequence[nn.Module]:
        """The last convolution, whose logits are compared with one another."""
        return (self.conv2,)


def _colour(rgb: Any) -> tuple[int, int, int]:
    """Returns a colour. Raises ValueError unless it is three whole numbers in 0..255."""
    parts = list(rgb) if isinstance(rgb, Sequence) else []
    if len(parts) != 3 or not all(isinstance(part, Integral) and 0 <= int(part) <= 255 for part in parts):
        raise ValueError(f"class_colours has {rgb!r}: expected [r, g, b] in 0..255 for each class")
    red, green, blue = map(int, parts)
    return red, green, blue
