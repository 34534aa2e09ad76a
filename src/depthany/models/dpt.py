"""The decoder: a dense prediction transformer (DPT) that turns four levels of patch tokens into a map.

Source: Ranftl et al. 2021, Vision Transformers for Dense Prediction (arXiv 2103.13413) 3.1, in the form of
Depth Anything (arXiv 2401.10891 and 2406.09414): no batch norm, no readout of the CLS token. Layer for layer
the weights are those of the released `depth_head`: projects, resize_layers, reduce = layer{1-4}_rn, fuse =
refinenet{1-4}, conv1 = output_conv1, conv2 and conv3 = output_conv2.{0,2}.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depthany.models.encoder import PATCH

HEAD_CHANNELS = 32  # width of the last hidden layer at full resolution, the same for every size
LAST_BIAS = 1.0  # see DPT; after 40 steps of vitt a bias of 0 gave 2-16 % zeros, 0.5 to 5 gave 0-3 %


class DPT(nn.Module):
    """DPT decoder; the finest of its four levels has 4 x 4 cells per patch.

    Args:
        in_channels: width c of the encoder's tokens.
        features: channels F of the fusion path.
        out_channels: channels of the four levels before they are brought to F, finest first.
        max_depth: None for disparity, ReLU at the end; metres for depth, sigmoid times max_depth at the end
            (the metric models of arXiv 2406.09414).

    Departure from the released code: the bias of the last convolution starts at `LAST_BIAS`. With the default
    start near 0 the final ReLU can cut off the whole map within a few steps; the affine-invariant loss of a
    constant map is exactly 1.000 and has no gradient, so such a run never comes back. The loss is blind to
    the shift itself. A metric head starts at 0, the middle of its range.
    """

    def __init__(
        self,
        in_channels: int,
        features: int,
        out_channels: tuple[int, ...],
        max_depth: float | None = None,
    ) -> None:
        super().__init__()
        self.max_depth = max_depth
        c1, c2, c3, c4 = out_channels
        self.projects = nn.ModuleList(nn.Conv2d(in_channels, c, 1) for c in out_channels)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(c1, c1, 4, stride=4),
                nn.ConvTranspose2d(c2, c2, 2, stride=2),
                nn.Identity(),
                nn.Conv2d(c4, c4, 3, stride=2, padding=1),
            ]
        )
        self.reduce = nn.ModuleList(
            nn.Conv2d(c, features, 3, padding=1, bias=False) for c in (c1, c2, c3, c4)
        )
        self.fuse = nn.ModuleList(Fusion(features, has_skip=level < 3) for level in range(4))
        self.conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.conv2 = nn.Conv2d(features // 2, HEAD_CHANNELS, 3, padding=1)
        self.conv3 = nn.Conv2d(HEAD_CHANNELS, 1, 1)
        assert self.conv3.bias is not None
        nn.init.constant_(self.conv3.bias, LAST_BIAS if max_depth is None else 0.0)

    def forward(self, tokens: list[Tensor], p: int, q: int) -> Tensor:
        """Map [b 14*p 14*q] float32: disparity >= 0 up to scale and shift, or depth_m in 0..max_depth.

        Args:
            tokens: four tensors [b p*q c], normalised patch tokens, shallowest block first.
            p, q: patches per column and per row.
        """
        levels = self.levels(tokens, p, q)
        path = self.fuse[3](levels[3], None, levels[2].shape[-2:])
        path = self.fuse[2](path, levels[2], levels[1].shape[-2:])
        path = self.fuse[1](path, levels[1], levels[0].shape[-2:])
        path = self.fuse[0](path, levels[0], (8 * p, 8 * q))
        return self.head(path, (PATCH * p, PATCH * q))

    def levels(self, tokens: list[Tensor], p: int, q: int) -> list[Tensor]:
        """Four maps of F channels, finest first: 4p x 4q, 2p x 2q, p x q and p/2 x q/2 (rounded up) cells."""
        levels = []
        for level, project, resize, reduce in zip(tokens, self.projects, self.resize_layers, self.reduce):
            grid = level.transpose(1, 2).unflatten(2, (p, q))  # [b c p q], channels-last in memory
            levels.append(reduce(resize(project(grid))))
        return levels

    def head(self, path: Tensor, size: tuple[int, int]) -> Tensor:
        """Disparity or depth_m [b h w] of the fused map [b F 8p 8q].

        The last, cheap layer leaves autocast: bfloat16 has steps of 0.4 %, which after the loss has removed
        the shift and divided by the spread would be a visible staircase.
        """
        hidden = F.interpolate(self.conv1(path), size, mode="bilinear", align_corners=True)
        hidden = F.relu(self.conv2(hidden), inplace=True)  # [b 32 h w]
        with torch.autocast(hidden.device.type, enabled=False):
            last = self.conv3(hidden.float()).squeeze(1)
            return F.relu(last) if self.max_depth is None else torch.sigmoid(last) * self.max_depth


class Fusion(nn.Module):
    """RefineNet fusion: add a level to the coarser path, refine, go up to the next level's size.

    The coarsest fusion has no path to add to, hence no skip unit; the released checkpoints carry an unused
    one.
    """

    def __init__(self, features: int, has_skip: bool) -> None:
        super().__init__()
        self.skip_unit = ResidualUnit(features) if has_skip else None
        self.unit = ResidualUnit(features)
        self.out_conv = nn.Conv2d(features, features, 1)

    def forward(self, path: Tensor, level: Tensor | None, size: tuple[int, int]) -> Tensor:
        """Refined path [b F *size] from a path and a level, both [b F h w].

        The released code interpolates first; a 1x1 convolution and an interpolation commute (the weights of
        each interpolated cell sum to 1), and this way round the convolution has a quarter of the cells.
        """
        if self.skip_unit is not None:
            assert level is not None
            path = path + self.skip_unit(level)
        path = self.out_conv(self.unit(path))
        return F.interpolate(path, size, mode="bilinear", align_corners=True)


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x)))), 3x3, width kept."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[b F h w] to the same."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x)), inplace=True))
