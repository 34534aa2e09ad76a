"""The contract of a head, and the output convolutions that Depth Anything's heads share."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depthany.models.dpt import Pyramid
from depthany.models.output import Prediction, Quantity
from depthany.models.upsample import resize

HIDDEN_CHANNELS = 32  # width of the last hidden layer at full resolution, the same for every size
STRIP_VALUES = 2**19  # of a strip of rows in float32: 2 MB


class Head(nn.Module):
    """Base class of the heads: from the decoder's pyramid to a map.

    A subclass takes the width F of the pyramid as `features`, then plain arguments, which it stores in
    `config`; it sets `quantity` and is a row of `depthany.models.tables.HEADS`.

    Attributes:
        config: constructor arguments except `features`, as plain values.
        quantity: what the map holds.
        borrows: name of another head -> names of its layers that this head can start from.
        takes_levels: whether it works on the encoder's levels, which the decoder `levels` hands on, and not
            on a pyramid.
        least_images: images that a batch of training must have, for BatchNorm after a global pooling.
    """

    config: dict[str, Any]
    quantity: Quantity
    borrows: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    takes_levels: ClassVar[bool] = False
    least_images: ClassVar[int] = 1

    def forward(self, pyramid: Pyramid, size: tuple[int, int]) -> Prediction:
        """Returns a map of `size` (h, w) without features."""
        raise NotImplementedError(f"{type(self).__name__}.forward")

    def float32_layers(self) -> Sequence[nn.Module]:
        """Returns the layers whose weights stay float32 when the model is cast to another type."""
        return ()

    def relative_layers(self) -> Sequence[nn.Module]:
        """Returns the layers of a metric head that belong to the relative model it is put on.

        Metric training gives them the learning rate of the decoder.
        """
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
        hidden = self.hidden(pyramid, size)
        with torch.autocast(hidden.device.type, enabled=False):
            return Prediction(self.activate(float32_conv(self.conv3, hidden).squeeze(1)))

    def hidden(self, pyramid: Pyramid, size: tuple[int, int]) -> Tensor:
        """Returns the last hidden layer [b 32 h w] at `size` (h, w)."""
        hidden = resize(self.conv1(pyramid.fused[0]), size)
        return F.relu(self.conv2(hidden), inplace=True)

    def activate(self, last: Tensor) -> Tensor:
        """Returns the map of the last convolution's output [b h w]."""
        raise NotImplementedError(f"{type(self).__name__}.activate")

    def float32_layers(self) -> Sequence[nn.Module]:
        """The last convolution, so that the map has no steps."""
        return (self.conv3,)


def float32_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Applies a 1x1 convolution to x [b c h w] in float32, or in float64 where its weights are.

    To be called outside autocast, which would compute in half precision.
    """
    dtype = torch.promote_types(conv.weight.dtype, torch.float32)
    if conv.weight.dtype == dtype:
        in_strips = x.dtype != dtype and x.device.type == "cpu" and torch.is_inference_mode_enabled()
        result: Tensor = _conv_in_strips(conv, x, dtype) if in_strips else conv(x.to(dtype))
        return result
    assert conv.bias is not None
    return F.conv2d(x.to(dtype), conv.weight.to(dtype), conv.bias.to(dtype))


def _conv_in_strips(conv: nn.Conv2d, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns `conv(x.to(dtype))` of a 1x1 convolution, equal up to the rounding of its sums. Strips of rows
    are copied one at a time and stay in the cache of the CPU.
    """
    b, c, h, w = x.shape
    result = x.new_empty(b, conv.out_channels, h, w, dtype=dtype)
    rows = max(1, STRIP_VALUES // (c * w))
    for image, out in zip(x.split(1), result.split(1), strict=True):
        for top in range(0, h, rows):
            out[:, :, top : top + rows] = conv(image[:, :, top : top + rows].to(dtype))
    return result
