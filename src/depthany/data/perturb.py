"""The strong perturbations of unlabeled images: colour, blur and CutMix. They are part of the method.

Only the student sees them; the teacher labels the clean image. Source: Yang et al. 2024 (arXiv 2401.10891)
section 3.2, which gives no strengths: those here are of the same author's UniMatch (arXiv 2208.09910).

Images are whole batches on their device, in uint8 or in float of 0..1. All random numbers come from a CPU
generator, a handful per image, so that a seed gives the same batch on every device and nothing waits for it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from depthany.system.rules import check_fields, setting

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, as Pillow and torchvision
_CPU_PIXELS = 2**17  # of the images that a CPU perturbs at once: 8 of 126 x 126, 1 of 518 x 518
_BOX_CANDIDATES = 256  # of the largest boxes about 1 in 14 fits


@dataclass(frozen=True)
class Share:
    """Which images of a batch are here, where others of it are with other processes or were left out.

    What is drawn for an image depends on its place alone, so that neither changes anything for the others.

    place: [b] number of each image in the batch, on the CPU. count: images in the whole batch.
    """

    place: Tensor
    count: int

    def __post_init__(self) -> None:
        places = self.place.tolist()
        if len(set(places)) < len(places) or not all(0 <= place < self.count for place in places):
            raise ValueError(f"places {places}: expected each once, below {self.count}")

    def partner(self) -> Tensor:
        """[b] index here of the image at the mirrored place; its own where that one is not here."""
        places = self.place.tolist()
        index = {place: i for i, place in enumerate(places)}
        mirrored = [index.get(self.count - 1 - place, index[place]) for place in places]
        return torch.tensor(mirrored, dtype=torch.int64)


def whole(b: int) -> Share:
    """The share that is all of a batch of `b` images."""
    return Share(torch.arange(b), b)


@dataclass(frozen=True)
class Perturb:
    """Strengths and probabilities of the strong perturbation; a probability of 0 turns its part off.

    Attributes:
        brightness, contrast, saturation: x; the factor is drawn from 1 - x to 1 + x.
        hue: x; the shift is drawn from -x to +x of the colour circle.
        jitter_p, grayscale_p, blur_p: share of images with colour jitter, without colour, with blur.
        blur_radius: range of the Gaussian's standard deviation, in pixels of the crop. The default is for
            crops of 500 to 800 pixels. Small crops need a smaller one, or too little of the image is left.
        cutmix_p: share of images with a box of their partner.
        cutmix_area, cutmix_aspect: ranges of the box's share of the image, and of its height over its width.

    Raises:
        ValueError: a value is outside its range.
    """

    brightness: float = setting(0.5, least=0, most=1)
    contrast: float = setting(0.5, least=0, most=1)
    saturation: float = setting(0.5, least=0, most=1)
    hue: float = setting(0.25, least=0, most=0.5)
    jitter_p: float = setting(0.8, least=0, most=1)
    grayscale_p: float = setting(0.2, least=0, most=1)
    blur_p: float = setting(0.5, least=0, most=1)
    blur_radius: tuple[float, float] = setting((0.1, 2.0), length=2, above=0)
    cutmix_p: float = setting(0.5, least=0, most=1)
    cutmix_area: tuple[float, float] = setting((0.02, 0.4), length=2, above=0, most=1)
    cutmix_aspect: tuple[float, float] = setting((0.3, 1 / 0.3), length=2, above=0)

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("blur_radius", "cutmix_area", "cutmix_aspect"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}={[low, high]}: expected the smaller number first")

    def colour(self, image: Tensor, generator: Generator, share: Share | None = None) -> Tensor:
        """Colour jitter, grayscale and blur, drawn for each image on its own: [b 3 h w], dtype kept.

        The four parts of the jitter come in a random order for each image, as in torchvision's ColorJitter.

        Args:
            share: which images of the batch these are; None = all.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"image is {tuple(image.shape)}; expected a batch [b 3 h w]")
        share = share or whole(len(image))
        n, place = share.count, share.place
        jittered, grey, blurred = (
            (torch.rand(n, generator=generator) < p)[place]
            for p in (self.jitter_p, self.grayscale_p, self.blur_p)
        )
        amount = torch.empty(4, n).uniform_(-1, 1, generator=generator)[:, place]
        position = torch.rand(4, n, generator=generator).argsort(0)[:, place]  # [4 b] when each part is due
        radius = torch.empty(n).uniform_(*self.blur_radius, generator=generator)[place]

        white = 1.0 if image.is_floating_point() else 255.0
        half_width = _half_width(self.blur_radius[1])
        out = image.to(torch.float32, copy=True)
        jitter = (
            (self.brightness, 1 + self.brightness * amount[0], adjust_brightness),
            (self.contrast, 1 + self.contrast * amount[1], adjust_contrast),
            (self.saturation, 1 + self.saturation * amount[2], adjust_saturation),
            (self.hue, self.hue * amount[3], adjust_hue),
        )
        for turn in range(4):
            for part, (strength, factor, adjust) in enumerate(jitter):
                if strength > 0:
                    _change(out, jittered & (position[part] == turn), factor, partial(adjust, white=white))
        _change(out, grey, amount[0], lambda chosen, _: _grey(chosen))
        _change(out, blurred, radius, partial(gaussian_blur, half_width=half_width))
        return out.to(image.dtype) if image.is_floating_point() else out.round_().to(image.dtype)

    def cutmix(
        self, image: Tensor, target: Tensor, mask: Tensor, generator: Generator, share: Share | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Paste a box of the partner, the batch in reverse, into about `cutmix_p` of the images.

        Args:
            image: [b 3 h w]; target: [b h w] pseudo-label; mask: [b h w] bool, True where it is valid.
            share: which images of the batch these are, partners together; None = all.

        Returns:
            image, target and mask mixed alike, and box_mask [b h w], True inside the box. An image without
            partner gets no box: the middle one of an odd batch, or one whose partner was left out.
        """
        h, w = mask.shape[1:]
        share = share or whole(len(mask))
        partner = share.partner()
        strengths = (self.cutmix_p, self.cutmix_area, self.cutmix_aspect)
        boxes = cutmix_boxes(share.count, h, w, generator, *strengths, chosen=share.place)
        box_mask = (boxes & (partner != torch.arange(len(mask)))[:, None, None]).to(mask.device)
        partner = partner.to(mask.device)
        return (
            cutmix(image, box_mask, partner),
            cutmix(target, box_mask, partner),
            cutmix(mask, box_mask, partner),
            box_mask,
        )


def cutmix_boxes(
    b: int,
    h: int,
    w: int,
    generator: Generator,
    p: float = 0.5,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    chosen: Tensor | None = None,
) -> Tensor:
    """Random boxes as masks [b h w] bool on the CPU; a share 1 - p of the images gets none.

    Area (share of the image) and aspect (height / width) are uniform; aspect and corner are drawn until the
    box fits, as in UniMatch (arXiv 2208.09910), which the authors of Depth Anything point to. Here many
    candidates are drawn at once and the first that fits is taken; should none fit, a box of the image's own
    shape is, so that the area always holds. The masks are [k h w] of the `chosen` [k] images, None = all.
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
    return in_rows[:, :, None] & in_columns[:, None, :]


def cutmix(values: Tensor, box_mask: Tensor, partner: Tensor) -> Tensor:
    """The partner's values inside the box, the image's own outside.

    Args:
        values: [b h w] or [b c h w] of any dtype: image, pseudo-label, mask.
        box_mask: [b h w] bool.
        partner: [b] index of the image that the box is taken from.
    """
    box = box_mask if values.ndim == 3 else box_mask[:, None]
    return torch.where(box, values[partner], values)


# The operations below take float images [b 3 h w] of 0..white and a factor [b]; torchvision's take one factor
# for the whole batch.


def adjust_brightness(image: Tensor, factor: Tensor, white: float = 1.0) -> Tensor:
    """factor · image: 0 is black, 1 leaves the image."""
    return (image * factor[:, None, None, None]).clamp_(0, white)


def adjust_contrast(image: Tensor, factor: Tensor, white: float = 1.0) -> Tensor:
    """Towards (factor below 1) or away from the mean luminance of the image."""
    mean = _grey(image).mean((1, 2, 3), keepdim=True)  # [b 1 1 1]
    return torch.lerp(mean, image, factor[:, None, None, None]).clamp_(0, white)


def adjust_saturation(image: Tensor, factor: Tensor, white: float = 1.0) -> Tensor:
    """Towards (factor below 1) or away from the luminance of each pixel."""
    return torch.lerp(_grey(image), image, factor[:, None, None, None]).clamp_(0, white)


def adjust_hue(image: Tensor, shift: Tensor, white: float = 1.0) -> Tensor:
    """Turn the hue of HSV by `shift` [b] turns.

    With the hue H in sixths of a turn, 0..6, and all else in the image's own range, a channel is the least
    one plus the chroma times |H - 3| - 1 for red, 2 - |H - 2| for green, 2 - |H - 4| for blue, held to 0..1.
    So no table of the six sectors is needed.
    """
    red, green, blue = image.unbind(1)  # [b h w]
    least, value = torch.aminmax(image, dim=1)
    chroma = value - least
    divisor = torch.where(chroma > 0, chroma, 1)  # grey has no hue; any will do
    hue = torch.where(value == green, (blue - red).div_(divisor).add_(2), (red - green).div_(divisor).add_(4))
    hue = torch.where(value == red, (green - blue).div_(divisor), hue)
    hue.add_(6 * shift[:, None, None]).remainder_(6)
    out = torch.empty_like(image)
    for channel, (centre, sign, offset) in enumerate(((3, 1, -1), (2, -1, 2), (4, -1, 2))):
        share = (hue - centre).abs_().mul_(sign).add_(offset).clamp_(0, 1)
        torch.addcmul(least, chroma, share, out=out[:, channel])
    return out.clamp_(0, white)


def gaussian_blur(image: Tensor, radius: Tensor, half_width: int) -> Tensor:
    """Separable Gaussian blur with a standard deviation of its own for each image.

    Sums of shifted images instead of a grouped convolution: faster on a CPU, and deaf to autocast and TF32.

    Args:
        image: [b 3 h w] float; its border is reflected.
        radius: [b] standard deviation in pixels, what Pillow calls the radius of its (approximate) Gaussian.
        half_width: taps on each side of the middle one, less than h and w.
    """
    if half_width >= min(image.shape[-2:]):
        raise ValueError(f"image is {tuple(image.shape)}; a blur of ± {half_width} pixels needs larger sides")
    offset = torch.arange(half_width + 1, device=image.device)
    tap = torch.exp(-0.5 * (offset / radius[:, None]) ** 2)  # [b half_width+1]
    tap = tap / (tap[:, :1] + 2 * tap[:, 1:].sum(1, keepdim=True))
    weight = tap.T[:, :, None, None, None]  # [half_width+1 b 1 1 1]
    for dim in (2, 3):
        size = image.shape[dim]
        pad = (half_width, half_width, 0, 0) if dim == 3 else (0, 0, half_width, half_width)
        padded = F.pad(image, pad, mode="reflect")
        image = image * weight[0]
        for i in range(1, half_width + 1):
            both = padded.narrow(dim, half_width - i, size) + padded.narrow(dim, half_width + i, size)
            image.addcmul_(both, weight[i])
    return image


def _change(
    image: Tensor, where: Tensor, parameter: Tensor, operation: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Replace the images [b 3 h w] that `where` [b] chooses by operation(those, their parameter), in place.

    A CPU takes a few at a time: a pass over more than its cache holds is several times as slow.
    """
    at_once = len(image) if image.is_cuda else max(1, _CPU_PIXELS // (image.shape[2] * image.shape[3]))
    for chosen in where.nonzero()[:, 0].split(at_once):
        if len(chosen):
            on_device = chosen.to(image.device)
            image[on_device] = operation(image[on_device], parameter[chosen].to(image.device))


def _half_width(radius: float) -> int:
    """Taps on each side that hold all but 0.3 % of a Gaussian."""
    return max(1, round(3 * radius))


def _grey(image: Tensor) -> Tensor:
    """Luminance: [b 3 h w] -> [b 1 h w]."""
    red, green, blue = image.unbind(1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])[:, None]
