"""Strided convolutions of narrow images, which oneDNN gets wrong in bfloat16."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def strided_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Applies a convolution whose stride is above 1; returns [b c_out h w] of [b c_in h w].

    In bfloat16 on a CPU with AMX, oneDNN (torch 2.14) leaves parts of such an output, or of the gradient of
    the weights, uninitialised where the output is one cell wide: NaN at times. There the input gets zeros on
    the right, which lie where the padding lies, for a second cell that is cut off again.
    """
    on_cpu = x.device.type == "cpu"
    if on_cpu and (conv.weight.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")):
        padding, stride = int(conv.padding[1]), conv.stride[1]
        if (x.shape[-1] + 2 * padding - conv.kernel_size[1]) // stride == 0:
            wider: Tensor = conv(F.pad(x, (0, stride)))
            return wider[..., :1]
    output: Tensor = conv(x)
    return output
