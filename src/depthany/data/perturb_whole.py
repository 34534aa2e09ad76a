"""Colour perturbations of a whole batch at once, in few passes of fixed shape: for a GPU.

`perturb.py` chooses images and changes those; here every image goes through every part, and a part that was
not drawn for it leaves it as it is. So there is nothing to select, one small copy to the device, a fifth of
the kernels, and always the same shapes, as `torch.compile` and CUDA graphs need. Values equal those of
`perturb_ops` up to rounding.

The parts of the jitter other than hue differ only in what they blend with: brightness blends with black,
contrast with the mean luminance, saturation with the luminance. So each image goes through up to three
blends, the hue, and up to three blends.
"""

from functools import lru_cache

import torch
from torch import Tensor

from depthany.data.perturb_ops import gaussian_taps, luminance

_BLENDS = 3  # brightness, contrast and saturation, before the hue and again after it
_OFFSETS = torch.tensor([5.0, 3.0, 1.0])  # of red, green and blue on the circle of hue, in sixths
_ROWS = 6 * _BLENDS + 6  # of `pack` before the taps


def pack(
    jittered: Tensor,
    change: Tensor,
    position: Tensor,
    grey: Tensor,
    blurred: Tensor,
    radius: Tensor,
    half_width: int,
) -> Tensor:
    """Returns all that was drawn for b images as one float tensor [rows b], for one copy to the device.

    Args:
        jittered, grey, blurred: [b] bool, what an image gets.
        change: [4 b] factor - 1 of brightness, contrast and saturation, and the shift of hue, in turns.
        position: [4 b] 0..3, the turn of each of these parts.
        radius: [b] standard deviation of the blur, in pixels. half_width: see `gaussian_blur`.
    """
    b = len(grey)
    turn, turn_of_hue = position[:_BLENDS], position[_BLENDS]
    slot = torch.where(turn < turn_of_hue, turn, _BLENDS + turn - turn_of_hue - 1)  # [3 b] 0..5
    jitter = torch.where(jittered, change, 0)  # [4 b]
    factor = torch.ones(2 * _BLENDS, b).scatter_(0, slot, 1 + jitter[:_BLENDS])
    of_mean, of_luminance = (torch.zeros(2 * _BLENDS, b).scatter_(0, slot[k : k + 1], 1.0) for k in (1, 2))
    offsets = _OFFSETS[:, None] + 6 * jitter[3]  # [3 b]
    taps = gaussian_taps(radius, half_width)  # [b half_width+1]
    flags = torch.stack([jitter[3] != 0, grey, blurred]).float()
    return torch.cat([factor, of_mean, of_luminance, offsets, flags, taps.T])


def change_colours(
    image: Tensor, drawn: Tensor, half_width: int, parts: tuple[bool, bool, bool] = (True, True, True)
) -> Tensor:
    """Returns image [b 3 h w], uint8 or float in 0..1, with jitter, grey and blur as they were drawn.

    Args:
        drawn: [rows b] from `pack`, on the device of the image.
        half_width: see `gaussian_blur`.
        parts: whether there is any jitter, grey, blur.
    """
    white = 1.0 if image.is_floating_point() else 255.0
    out = image.to(torch.float32)
    factor, of_mean, of_luminance = drawn[: 6 * _BLENDS, :, None, None, None].split(2 * _BLENDS)
    hued, grey, blurred = drawn[_ROWS - 3 : _ROWS, :, None, None, None] > 0.5  # [b 1 1 1] each
    with_jitter, with_grey, with_blur = parts
    if with_jitter:
        from_luminance = of_luminance > 0.5
        for slot in range(2 * _BLENDS):
            if slot == _BLENDS:
                offsets = drawn[6 * _BLENDS : 6 * _BLENDS + 3].T[:, :, None, None]  # [b 3 1 1]
                out = torch.where(hued, shift_hue(out, offsets), out)
            grey_map = luminance(out)  # [b 1 h w]
            mean = grey_map.mean((1, 2, 3), keepdim=True) * of_mean[slot]  # [b 1 1 1]
            other = torch.where(from_luminance[slot], grey_map, mean)
            out = torch.lerp(other, out, factor[slot]).clamp_(0, white)
    if with_grey:
        out = torch.where(grey, luminance(out), out)
    if with_blur:
        out = torch.where(blurred, blur(out, drawn[_ROWS:].T, half_width), out)
    return out.to(image.dtype) if image.is_floating_point() else out.round_().to(image.dtype)


def shift_hue(image: Tensor, offsets: Tensor) -> Tensor:
    """Returns image [b 3 h w], 0 or more, with another hue: `adjust_hue` without writing into parts of it.

    With the hue H in sixths of a turn a channel is value - chroma * min(k, 4 - k, 1), not below value -
    chroma, where k = (H + n) mod 6 and n = 5, 3, 1 for red, green, blue.

    Args:
        offsets: [b 3 1 1] n plus the shift, in sixths of a turn.
    """
    red, green, blue = image.unbind(1)  # [b h w]
    least, value = torch.aminmax(image, dim=1)
    chroma = value - least
    divisor = chroma.clamp(min=1e-12)  # gray has no hue: any value will do
    hue = torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4)
    hue = torch.where(value == red, (green - blue) / divisor, hue)
    k = (hue[:, None] + offsets).remainder_(6)  # [b 3 h w]
    share = torch.minimum(k, 4 - k).clamp_(0, 1)
    return torch.addcmul(value[:, None], chroma[:, None], share, value=-1)


def blur(image: Tensor, taps: Tensor, half_width: int) -> Tensor:
    """Blurs image [b 3 h w] float with reflected borders: a product with a band matrix for each direction.

    Args:
        taps: [b half_width+1] from `gaussian_taps`.
        half_width: less than h and w.
    """
    b, _, h, w = image.shape
    if half_width >= min(h, w):
        raise ValueError(f"image is {tuple(image.shape)}; a blur of ± {half_width} pixels needs larger sides")
    bands = _bands if torch.compiler.is_compiling() else _kept_bands
    with torch.autocast(image.device.type, enabled=False):
        down, across = (
            (taps @ bands(size, half_width, image.device).flatten(1)).view(b, 1, size, size)
            for size in (h, w)
        )
        rows = torch.bmm(image.reshape(b, -1, w), across[:, 0].mT).view(image.shape)
        return down @ rows


def _bands(size: int, half_width: int, device: torch.device) -> Tensor:
    """Returns [half_width+1 size size]: how often output i takes input j with the tap of each distance.

    Once where j is as far from i as the tap, and again where the mirror image of j is, beyond either border.
    """
    i = torch.arange(size, device=device)[:, None]
    j, last, nowhere = i.T, size - 1, half_width + 1
    beyond_first = torch.where(j > 0, i + j, nowhere)
    beyond_last = torch.where(j < last, 2 * last - i - j, nowhere)
    distance = torch.stack([(i - j).abs(), beyond_first, beyond_last])  # [3 size size]
    taps = torch.arange(half_width + 1, device=device)[:, None, None, None]
    return (distance == taps).sum(1).float()


_kept_bands = lru_cache(maxsize=16)(_bands)  # of the sizes of crops of a run, 2 at most
