"""The strong perturbations of unlabeled images: colour jitter, blur and CutMix. They are part of the method.

Only the student sees the perturbed image; the teacher labels the clean one. Source: Yang et al. 2024 (arXiv
2401.10891), section 3.2. It publishes no strengths; these are UniMatch's, by the same author (arXiv
2208.09910).

Images are batches on their device, uint8 or float in 0..1. All random numbers come from a CPU generator, a
few for each image: a seed gives the same result on every device up to rounding, and nothing waits for a GPU.
A CPU changes the images that were drawn, a few at a time; other devices change the whole batch at once, see
`depthany.data.perturb_whole`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Generator, Tensor

from depthany.data.perturb_ops import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    box_sides,
    cutmix,
    gaussian_blur,
    inside,
    luminance,
)
from depthany.data.perturb_whole import change_colours, pack
from depthany.system.rules import check_fields, setting
from depthany.system.transfer import send

_CPU_PIXELS = 2**17  # of the images that a CPU perturbs at once: 8 of 126 x 126, 1 of 518 x 518


@dataclass(frozen=True)
class Share:
    """The images of a batch that this process has. Others may be in other processes, or were left out.

    Random numbers depend only on the place of an image, so they do not depend on which other images are
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

    def colour(
        self, image: Tensor, generator: Generator, share: Share | None = None, is_compiled: bool = False
    ) -> Tensor:
        """Applies colour jitter, grayscale and blur, each drawn for every image separately.

        The four parts of the jitter come in a random order for each image, as in torchvision's ColorJitter.

        Args:
            image: [b 3 h w] uint8, or float in 0..1.
            generator: on the CPU.
            share: which images of the batch these are; None = all.
            is_compiled: compile the whole-batch changes, on devices that use them (`changes_whole_batch`).

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
        if changes_whole_batch(image.device):
            strengths = torch.tensor([self.brightness, self.contrast, self.saturation, self.hue])
            drawn = pack(jittered, strengths[:, None] * amount, position, grey, blurred, radius, half_width)
            parts = self.jitter_p > 0, self.grayscale_p > 0, self.blur_p > 0
            change = compiled_colours() if is_compiled else change_colours
            return change(image, send(drawn, image.device), half_width, parts)
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
        _change(out, grey, amount[0], lambda chosen, _: luminance(chosen))
        _change(out, blurred, radius, partial(gaussian_blur, half_width=half_width))
        return out.to(image.dtype) if image.is_floating_point() else out.round_().to(image.dtype)

    def cutmix(
        self,
        image: Tensor,
        target: Tensor,
        mask: Tensor,
        generator: Generator,
        share: Share | None = None,
        *more: Tensor,
    ) -> tuple[Tensor, ...]:
        """Pastes a box of the partner into about `cutmix_p` of the images. The partners are the batch in
        reverse.

        Args:
            image: [b 3 h w].
            target: [b h w] pseudo-label.
            mask: [b h w] bool, True where the target is valid.
            generator: on the CPU.
            share: which images of the batch these are, partners together; None = all.
            more: further images or maps of the batch, [b 3 h w] or [b h w].

        Returns:
            image, target and mask, all mixed alike, box_mask [b h w] bool, True inside the box, and `more`,
            mixed alike. An image without partner gets no box: the middle one of an odd batch, or one whose
            partner was left out.
        """
        h, w = mask.shape[1:]
        share = share or whole(len(mask))
        partner = share.partner()
        strengths = (self.cutmix_p, self.cutmix_area, self.cutmix_aspect)
        in_rows, in_columns = box_sides(share.count, h, w, generator, *strengths, chosen=share.place)
        in_rows = in_rows & (partner != torch.arange(len(mask)))[:, None]
        sides = send(torch.cat([in_rows, in_columns], 1), mask.device)  # [b h+w]
        box_mask, partner = inside(sides[:, :h], sides[:, h:]), send(partner, mask.device)
        return (
            cutmix(image, box_mask, partner),
            cutmix(target, box_mask, partner),
            cutmix(mask, box_mask, partner),
            box_mask,
            *(cutmix(each, box_mask, partner) for each in more),
        )


def changes_whole_batch(device: torch.device) -> bool:
    """Whether `perturb_whole` changes the images on this device."""
    return device.type != "cpu"


def _change(
    image: Tensor, where: Tensor, parameter: Tensor, operation: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Replaces, in place, the images [b 3 h w] chosen by `where` [b] by operation(images, parameter [b]).

    A few images at a time: more than the cache of a CPU holds would be several times as slow.
    """
    at_once = max(1, _CPU_PIXELS // (image.shape[2] * image.shape[3]))
    for chosen in where.nonzero()[:, 0].split(at_once):
        if len(chosen):
            image[chosen] = operation(image[chosen], parameter[chosen])


@cache
def compiled_colours() -> Callable[..., Tensor]:
    """Returns the compiled form of `change_colours`, for batches of one size."""
    return torch.compile(change_colours, dynamic=False)


def _half_width(radius: float) -> int:
    """Returns the taps on each side that hold all but 0.3 % of a Gaussian."""
    return max(1, round(3 * radius))
