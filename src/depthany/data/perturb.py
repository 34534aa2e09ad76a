"""The strong perturbations of unlabeled images: colour jitter, blur and CutMix. They are part of the method.

Only the student sees the perturbed image; the teacher labels the clean one. Source: Yang et al. 2024 (arXiv
2401.10891), section 3.2. It publishes no strengths: those here are of UniMatch, by the same author (arXiv
2208.09910).

Images are batches on their device, uint8 or float in 0..1. All random numbers come from a CPU generator, a
few for each image: a seed has the same result on every device, and the GPU is never waited for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, as Pillow and torchvision
_CPU_PIXELS = 2**17  # of the images that a CPU perturbs at once: 8 of 126 x 126, 1 of 518 x 518
_BOX_CANDIDATES = 256  # of the largest boxes about 1 in 14 fits


@dataclass(frozen=True)
class Share:
    """The images of a batch that this process has. Others may be in other processes, or were left out.

    Random numbers depend on the place of an image alone, so they do not depend on which other images are
    here.

    place: [b] number of each image in the whole batch, on the CPU.
    count: images in the whole batch.
    """

    place: Tensor
    count: int

    def __post_init__(self) -> None:
        places = self.place.tolist()
        if len(set(places)) < len(places) or not all(0 <= place < self.count for place in places):
            raise ValueError(f"places {places}: expected different numbers from 0 to {self.count - 1}")

    def partner(self) -> Tensor:
        """Returns [b] the index of the image at the mirrored place; the image's own index if that one is not
        here.
        """
        places = self.place.tolist()
        index = {place: i for i, place in enumerate(places)}
        mirrored = [index.get(self.count - 1 - place, index[place]) for place in places]
        return torch.tensor(mirrored, dtype=torch.int64)


def whole(b: int) -> Share:
    """Returns the share of a process that has all `b` images of the batch."""
    return Share(torch.arange(b), b)


@dataclass(frozen=True)
class Perturb:
    """Strengths and probabilities of the strong perturbation. A probability of 0 turns a part off.

    brightness, contrast, saturation: the factor is uniform in 1 ± this.
    hue: the shift is uniform in ± this, in turns.
    jitter_p, grayscale_p, blur_p: share of the images that get colour jitter, become gray, are blurred.
    blur_radius: range of the Gaussian's standard deviation, in pixels of the crop. The default was chosen for
        crops of 500 to 800 pixels; small crops need a smaller one.
    cutmix_p: share of the images that get a box of their partner.
    cutmix_area: range of the area of the box, as a share of the image.
    cutmix_aspect: range of the height of the box over its width.
    """

    brightness: float = 0.5
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.25
    jitter_p: float = 0.8
    grayscale_p: float = 0.2
    blur_p: float = 0.5
    blur_radius: tuple[float, float] = (0.1, 2.0)
    cutmix_p: float = 0.5
    cutmix_area: tuple[float, float] = (0.02, 0.4)
    cutmix_aspect: tuple[float, float] = (0.3, 1 / 0.3)

    def __post_init__(self) -> None:
        for name in ("jitter_p", "grayscale_p", "blur_p", "cutmix_p", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 to 1")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue is {self.hue}; expected 0 to 0.5 turns")
        if not 0 < self.blur_radius[0] <= self.blur_radius[1]:
            raise ValueError(f"blur_radius is {tuple(self.blur_radius)}; expected 0 < low <= high, in pixels")
        if not 0 < self.cutmix_area[0] <= self.cutmix_area[1] <= 1:
            raise ValueError(f"cutmix_area is {tuple(self.cutmix_area)}; expected 0 < low <= high <= 1")
        if not 0 < self.cutmix_aspect[0] <= self.cutmix_aspect[1]:
            raise ValueError(f"cutmix_aspect is {tuple(self.cutmix_aspect)}; expected 0 < low <= high")

    def colour(self, image: Tensor, generator: Generator, share: Share | None = None) -> Tensor:
        """Applies colour jitter, grayscale and blur, each drawn for every image separately.

        The four parts of the jitter come in a random order for each image, as in torchvision's ColorJitter.

        Args:
            image: [b 3 h w] uint8, or float in 0..1.
            generator: on the CPU.
            share: which images of the batch these are; None = all.

        Returns:
            [b 3 h w] of the same type.
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
        position = torch.rand(4, n, generator=generator).argsort(0)[:, place]  # [4 b] turn of each part
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
        """Pastes a box of the partner into about `cutmix_p` of the images. The partners are the batch in
        reverse.

        Args:
            image: [b 3 h w].
            target: [b h w] pseudo-label.
            mask: [b h w] bool, True where the target is valid.
            generator: on the CPU.
            share: which images of the batch these are, partners together; None = all.

        Returns:
            image, target and mask, all mixed alike, and box_mask [b h w] bool, True inside the box. An image
            without partner gets no box: the middle one of an odd batch, or one whose partner was left out.
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
    """Draws random boxes. A share 1 - p of the images gets none.

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
        [k h w] bool on the CPU, True inside the box.
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
    mean = _grey(image).mean((1, 2, 3), keepdim=True)  # [b 1 1 1]
    return torch.lerp(mean, image, factor[:, None, None, None]).clamp_(0, white)


def adjust_saturation(image: Tensor, factor: Tensor, white: float = 1.0) -> Tensor:
    """Moves each pixel towards (factor below 1) or away from its luminance."""
    return torch.lerp(_grey(image), image, factor[:, None, None, None]).clamp_(0, white)


def adjust_hue(image: Tensor, shift: Tensor, white: float = 1.0) -> Tensor:
    """Shifts the hue of HSV by `shift` [b] turns.

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
    """Replaces, in place, the images [b 3 h w] chosen by `where` [b] by operation(images, parameter [b]).

    A CPU changes a few images at a time: more than its cache holds would be several times as slow.
    """
    at_once = len(image) if image.is_cuda else max(1, _CPU_PIXELS // (image.shape[2] * image.shape[3]))
    for chosen in where.nonzero()[:, 0].split(at_once):
        if len(chosen):
            on_device = chosen.to(image.device)
            image[on_device] = operation(image[on_device], parameter[chosen].to(image.device))


def _half_width(radius: float) -> int:
    """Returns the taps on each side that hold all but 0.3 % of a Gaussian."""
    return max(1, round(3 * radius))


def _grey(image: Tensor) -> Tensor:
    """Returns the luminance: [b 3 h w] -> [b 1 h w]."""
    red, green, blue = image.unbind(1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])[:, None]
