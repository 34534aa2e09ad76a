"""The contract of a head, and the output convolutions that Depth Anything's heads share."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depthany.models.dpt import Pyramid
from depthany.models.output import Prediction, Quantity

HIDDEN_CHANNELS = 32  # width of the last hidden layer at full resolution, the same for every size


class Head(nn.Module):
    """Base class of the heads: from the decoder's pyramid to a map.

    A subclass takes the width F of the pyramid as `features`, then plain arguments, which it stores in
    `config`; it sets `quantity` and is a row of `depthany.models.tables.HEADS`.

    Attributes:
        config: constructor arguments but for `features`, as plain values.
        quantity: what the map holds.
    """

    config: dict[str, Any]
    quantity: Quantity

    def forward(self, pyramid: Pyramid, size: tuple[int, int]) -> Prediction:
        """Returns a map of `size` (h, w) without features."""
        raise NotImplementedError(f"{type(self).__name__}.forward")

    def float32_layers(self) -> Sequence[nn.Module]:
        """Returns the layers whose weights stay float32 when the model is cast to another type."""
        return ()


class OutputConvolutions(Head):
    """The released output convolutions: conv1 = output_conv1, conv2 and conv3 = output_conv2.{0,2}.

    Args:
        features: channels F of the finest fused map.
        last_bias: initial bias of the last convolution.
    """

    def __init__(self, features: int, last_bias: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.conv2 = nn.Conv2d(features // 2, HIDDEN_CHANNELS, 3, padding=1)
        self.conv3 = nn.Conv2d(HIDDEN_CHANNELS, 1, 1)
        assert self.conv3.bias is not None
        nn.init.constant_(self.conv3.bias, last_bias)

    def forward(self, pyramid: Pyramid, size: tuple[int, int]) -> Prediction:
        """Returns the map [b h w] float32, or float64 where the weights are.

        The last, cheap layer computes in float32 at least, under autocast and with half-precision weights
        too: bfloat16 has steps of 0.4 %, which would be a visible staircase once the loss has removed the
        shift and divided by the spread.
        """
        hidden = F.interpolate(self.conv1(pyramid.fused[0]), size, mode="bilinear", align_corners=True)
        hidden = F.relu(self.conv2(hidden), inplace=True)  # [b 32 h w]
        with torch.autocast(hidden.device.type, enabled=False):
            return Prediction(self.activate(self._last(hidden).squeeze(1)))

    def _last(self, hidden: Tensor) -> Tensor:
        """Applies the last convolution to [b 32 h w]; returns [b 1 h w]."""
        dtype = torch.promote_types(self.conv3.weight.dtype, torch.float32)
        if self.conv3.weight.dtype == dtype:
            last: Tensor = self.conv3(hidden.to(dtype))
            return last
        assert self.conv3.bias is not None
        return F.conv2d(hidden.to(dtype), self.conv3.weight.to(dtype), self.conv3.bias.to(dtype))

    def activate(self, last: Tensor) -> Tensor:
        """Returns the map of the last convolution's output [b h w]."""
        raise NotImplementedError(f"{type(self).__name__}.activate")

    def float32_layers(self) -> Sequence[nn.Module]:
        """The last convolution, so that the map has no steps."""
        return (self.conv3,)
