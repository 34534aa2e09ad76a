"""The decoder: a dense prediction transformer (DPT) that fuses four levels of features into a pyramid.

Source: Ranftl et al. 2021, Vision Transformers for Dense Prediction (arXiv 2103.13413) 3.1, in the form of
Depth Anything (arXiv 2401.10891 and 2406.09414): no batch norm, no readout of the CLS token. Layer for layer
the weights are those of the released `depth_head`: projects, resize_layers, reduce = layer{1-4}_rn, fuse =
refinenet{1-4}. Its output convolutions belong to the heads (`depthany.models.heads`).
"""

from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from depthany.models.encoder import Four
from depthany.models.strided import strided_conv
from depthany.models.upsample import resize


class Pyramid(NamedTuple):
    """What a head builds on.

    Attributes:
        bottleneck: [b F h w] the coarsest level before fusion.
        fused: four fused maps [b F h w], finest first; each has the size of the next finer level, the finest
            one twice the size of the finest level.
    """

    bottleneck: Tensor
    fused: tuple[Tensor, Tensor, Tensor, Tensor]


class DPT(nn.Module):
    """DPT decoder: resamples four levels to 1/4, 1/2, 1 and 2 times the third one's stride, then fuses them.

    A vision transformer has four levels of one stride, which are resampled; those of a CNN have these strides
    already.

    Args:
        widths: channels of the encoder's levels.
        strides: pixels per cell of the encoder's levels.
        features: channels F of the fusion path.
        out_channels: channels of the four levels before they are brought to F, finest first.

    Attributes:
        config: the last two arguments as plain values; the encoder sets the others.

    Raises:
        ValueError: a level would have to be resampled by a factor that is not a power of two.
    """

    def __init__(self, widths: Four, strides: Four, features: int, out_channels: Four) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"features": features, "out_channels": list(out_channels)}
        self.features = features
        targets = [strides[2] * step for step in (0.25, 0.5, 1, 2)]
        self.projects = nn.ModuleList(nn.Conv2d(width, c, 1) for width, c in zip(widths, out_channels))
        self.resize_layers = nn.ModuleList(
            _resample(c, stride / target) for c, stride, target in zip(out_channels, strides, targets)
        )
        self.reduce = nn.ModuleList(nn.Conv2d(c, features, 3, padding=1, bias=False) for c in out_channels)
        self.fuse = nn.ModuleList(Fusion(features, has_skip=level < 3) for level in range(4))

    def forward(self, levels: list[Tensor]) -> Pyramid:
        """Fuses four levels [b c p q] of an encoder, shallowest first."""
        l1, l2, l3, l4 = self.reassemble(levels)
        h, w = l1.shape[-2:]
        path4 = self.fuse[3](l4, None, l3.shape[-2:])
        path3 = self.fuse[2](path4, l3, l2.shape[-2:])
        path2 = self.fuse[1](path3, l2, (h, w))
        path1 = self.fuse[0](path2, l1, (2 * h, 2 * w))
        return Pyramid(l4, (path1, path2, path3, path4))

    def reassemble(self, levels: list[Tensor]) -> list[Tensor]:
        """Returns four maps [b F h w], finest first, of the encoder's four levels [b c p q].

        Of a vision transformer's p x q patches: 4p x 4q, 2p x 2q, p x q and p/2 x q/2 (rounded up) cells.
        """
        return [
            reduce(_resized(project(level), resize))
            for level, project, resize, reduce in zip(levels, self.projects, self.resize_layers, self.reduce)
        ]


def _resample(channels: int, factor: float) -> nn.Module:
    """Returns a layer that makes a map [b c h w] `factor` times as large: 4, 2, 1 or 1/2."""
    if factor == 1:
        return nn.Identity()
    if factor in (2, 4):
        return nn.ConvTranspose2d(channels, channels, int(factor), stride=int(factor))
    if factor == 0.5:
        return nn.Conv2d(channels, channels, 3, stride=2, padding=1)
    raise ValueError(
        f"DPT cannot resample a level by {factor:g}: expected levels of one stride, or strides that "
        "double from level to level"
    )


def _resized(level: Tensor, resize: nn.Module) -> Tensor:
    """Applies a layer of `_resample` to a level [b c p q]."""
    if isinstance(resize, nn.Conv2d):
        return strided_conv(resize, level)
    resized: Tensor = resize(level)
    return resized


class Fusion(nn.Module):
    """RefineNet fusion: adds a level to the coarser path, refines, and resizes to the next level's size.

    The coarsest fusion has no path to add to, hence no skip unit; the released checkpoints carry an unused
    one.
    """

    def __init__(self, features: int, has_skip: bool) -> None:
        super().__init__()
        self.skip_unit = ResidualUnit(features) if has_skip else None
        self.unit = ResidualUnit(features)
        self.out_conv = nn.Conv2d(features, features, 1)

    def forward(self, path: Tensor, level: Tensor | None, size: tuple[int, int]) -> Tensor:
        """Returns the refined path [b F *size] of a path and a level, both [b F h w].

        The released code interpolates first. A 1x1 convolution and an interpolation commute (the weights of
        each interpolated cell sum to 1), and in this order the convolution has a quarter of the cells.
        """
        if self.skip_unit is not None:
            assert level is not None
            path = path + self.skip_unit(level)
        path = self.out_conv(self.unit(path))
        return resize(path, size)


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x)))), 3x3, width kept."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns x [b F h w] and what the convolutions add to it."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x)), inplace=True))
