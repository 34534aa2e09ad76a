"""The operations behind the strong perturbations: adjustments of colour, blur, and the boxes of CutMix."""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, as Pillow and torchvision
_BOX_CANDIDATES = 256  # of the largest boxes about 1 in 14 fits


def inside(in_rows: Tensor, in_columns: Tensor) -> Tensor:
    """Returns [k h w] bool, True inside boxes, from their in_rows [k h] and in_columns [k w] bool."""
    return in_rows[:, :, None] & in_columns[:, None, :]


def box_sides(
    b: int,
    h: int,
    w: int,
    generator: Generator,
    p: float = 0.5,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    chosen: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draws the rows and columns of random boxes. A share 1 - p of the images gets none.

    Area (share of the image) and aspect (height / width) are uniform. UniMatch (arXiv 2208.09910), to which
    the authors of Depth Anything refer, draws aspect and corner until the box fits. Here many candidates are
    drawn at once, and the first that fits is taken. If none fits, the box has the shape of the image, so the
    area is always right.

    Args:
        b, h, w: images, and their height and width.
        generator: on the CPU.
        p, area, aspect: see `Perturb`.
        chosen: [k] images whose boxes are returned; None = all.

    Returns:
        Rows [k h] and columns [k w] bool on the CPU, True inside the box; without a box no row is.
    """
    with_box = torch.rand(b, 1, generator=generator) < p
    pixels = torch.empty(b, 1).uniform_(*area, generator=generator) * (h * w)
    ratio = torch.empty(b, _BOX_CANDIDATES).uniform_(*aspect, generator=generator)
    u, v = torch.rand(2, b, _BOX_CANDIDATES, generator=generator)

    height, width = (pixels * ratio).sqrt().round().clamp(min=1), (pixels / ratio).sqrt().round().clamp(min=1)
    top, left = (v * h).floor(), (u * w).floor()
    fits = (top + height <= h) & (left + width <= w)  # [b candidates]

    fallback = (pixels / (h * w)).sqrt()
    height[:, -1:], width[:, -1:] = (fallback * h).round().clamp(1, h), (fallback * w).round().clamp(1, w)
    top[:, -1:] = (v[:, -1:] * (h - height[:, -1:] + 1)).floor().clamp(max=h - height[:, -1:])
    left[:, -1:] = (u[:, -1:] * (w - width[:, -1:] + 1)).floor().clamp(max=w - width[:, -1:])
    fits[:, -1] = True

    first = fits.to(torch.uint8).argmax(1, keepdim=True)  # [b 1]
    top, left, height, width = (x.gather(1, first) for x in (top, left, height, width))
    y, x = torch.arange(h), torch.arange(w)
    in_rows = (y >= top) & (y < top + height) & with_box  # [b h]
    in_columns = (x >= left) & (x < left + width)  # [b w]
    if chosen is not None:
        in_rows, in_columns = in_rows[chosen], in_columns[chosen]
    return in_rows, in_columns


def cutmix(values: Tensor, box_mask: Tensor, partner: Tensor) -> Tensor:
    """Returns the partner's values inside the box, and the image's own outside.

    Args:
        values: [b h w] or [b c h w] of any dtype: image, pseudo-label, mask.
        box_mask: [b h w] bool.
        partner: [b] index of the image that the box is taken from.
    """
    box = box_mask if values.ndim == 3 else box_mask[:, None]
    return torch.where(box, values[partner], values)


# The operations below take float images [b 3 h w] in 0..white and a factor [b] for each; torchvision's take
# one factor for the whole batch.


def adjust_brightness(image: Tensor, factor: Tensor, white: float = 1.0) -> Tensor:
    """Returns factor · image: factor 0 is black, 1 the image itself."""
    return (image * factor[:, None, None, None]).clamp_(0, white)


def adjust_contrast(image: Tensor, factor: Tensor, white: float = 1.0) -> Tensor:
    """Moves the image towards (factor below 1) or away from its mean luminance."""
    mean = luminance(image).mean((1, 2, 3), keepdim=True)  # [b 1 1 1]
    return torch.lerp(mean, image, factor[:, None, None, None]).clamp_(0, white)


def adjust_saturation(image: Tensor, factor: Tensor, white: float = 1.0) -> Tensor:
    """Moves pixels of image [b 3 h w], 0..white, towards (factor [b] < 1) or away from their luminance."""
    return torch.lerp(luminance(image), image, factor[:, None, None, None]).clamp_(0, white)


def adjust_hue(image: Tensor, shift: Tensor, white: float = 1.0) -> Tensor:
    """Shifts the hue (HSV) of image [b 3 h w], 0..white, by `shift` [b] turns.

    With the hue H in sixths of a turn, 0..6, a channel is the least channel plus the chroma times a factor
    clamped to 0..1: |H - 3| - 1 for red, 2 - |H - 2| for green, 2 - |H - 4| for blue. This needs no table of
    the six sectors.
    """
    red, green, blue = image.unbind(1)  # [b h w]
    least, value = torch.aminmax(image, dim=1)
    chroma = value - least
    divisor = torch.where(chroma > 0, chroma, 1)  # gray has no hue: any value will do
    hue = torch.where(value == green, (blue - red).div_(divisor).add_(2), (red - green).div_(divisor).add_(4))
    hue = torch.where(value == red, (green - blue).div_(divisor), hue)
    hue.add_(6 * shift[:, None, None]).remainder_(6)
    out = torch.empty_like(image)
    for channel, (centre, sign, offset) in enumerate(((3, 1, -1), (2, -1, 2), (4, -1, 2))):
        share = (hue - centre).abs_().mul_(sign).add_(offset).clamp_(0, 1)
        torch.addcmul(least, chroma, share, out=out[:, channel])
    return out.clamp_(0, white)


def gaussian_blur(image: Tensor, radius: Tensor, half_width: int) -> Tensor:
    """Blurs with a separable Gaussian, whose standard deviation differs between images.

    Adds shifted images instead of a grouped convolution: faster on a CPU, and the same under autocast and
    TF32.

    Args:
        image: [b 3 h w] float; its border is reflected.
        radius: [b] standard deviation in pixels, as the radius of Pillow's (approximate) Gaussian.
        half_width: taps on each side of the middle one, less than h and w.
    """
    if half_width >= min(image.shape[-2:]):
        raise ValueError(f"image is {tuple(image.shape)}; a blur of ± {half_width} pixels needs larger sides")
    weight = gaussian_taps(radius, half_width).T[:, :, None, None, None]  # [half_width+1 b 1 1 1]
    for dim in (2, 3):
        size = image.shape[dim]
        pad = (half_width, half_width, 0, 0) if dim == 3 else (0, 0, half_width, half_width)
        padded = F.pad(image, pad, mode="reflect")
        image = image * weight[0]
        for i in range(1, half_width + 1):
            both = padded.narrow(dim, half_width - i, size) + padded.narrow(dim, half_width + i, size)
            image.addcmul_(both, weight[i])
    return image


def gaussian_taps(radius: Tensor, half_width: int) -> Tensor:
    """Returns the weights [b half_width+1] of a pixel and of its neighbours on one side; see `gaussian_blur`.

    Args:
        radius: [b] standard deviation in pixels.
    """
    offset = torch.arange(half_width + 1, device=radius.device)
    tap = torch.exp(-0.5 * (offset / radius[:, None]) ** 2)  # [b half_width+1]
    return tap / (tap[:, :1] + 2 * tap[:, 1:].sum(1, keepdim=True))


def luminance(image: Tensor) -> Tensor:
    """Returns the luminance [b 1 h w] of image [b 3 h w], in its range."""
    red, green, blue = image.unbind(1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])[:, None]
