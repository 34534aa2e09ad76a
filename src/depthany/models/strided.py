"""Strided convolutions: of narrow images, where oneDNN is wrong in bfloat16, and as a matrix product."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def strided_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Applies a convolution whose stride is above 1 to x [b c_in h w]; returns [b c_out h w].

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


class PatchProduct(nn.Module):
    """The embedding of patches as a product, which refuses an image whose sides are not multiples of a patch.

    A convolution of the graph would silently leave out the last rows and columns of such an image; here the
    shapes do not fit, and the runtime reports it.

    Args:
        conv: the convolution from patches to tokens.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias, self.side = conv.weight, conv.bias, conv.stride[0]

    def forward(self, image: Tensor) -> Tensor:
        """Returns tokens [b c p q] of an image [b 3 h w]."""
        (b, channels, h, w), side = image.shape, self.side
        p, q = h // side, w // side
        patches = image.reshape(b, channels, p, side, q, side).permute(0, 2, 4, 1, 3, 5)  # [b p q 3 s s]
        return F.linear(patches.flatten(3), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
