"""The crops of segmentation training: of the image at a random scale, padded where that is smaller.

Source: the augmentation of DINOv2's and Depth Anything's segmentation (mmsegmentation's RandomResize and
RandomCrop): scale 0.5 to 2, crop, flip, and another crop where one class has more than 75 % of it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from depthany.data.images import Photo
from depthany.data.targets import Labels
from depthany.data.transforms import Crop, covering_size
from depthany.data.views import recoloured
from depthany.system.rules import check_fields, setting

BASES = ("crop", "image")
TRIES = 10  # crops drawn at most
PADDING = (124, 116, 104)  # RGB of padding: about ImageNet's mean, which normalisation makes 0
GAMMA, BRIGHTNESS, CHANNELS = (0.8, 1.25), (0.75, 1.25), (0.85, 1.15)  # ranges of other colours


@dataclass(frozen=True)
class ClassCrops:
    """How a labeled image becomes a crop.

    Attributes:
        scale: smallest and largest factor on the size of `base`.
        base: `crop`: the smallest size at which the image covers the crop; `image`: the image's own size.
        most_of_one_class: share of the known pixels. A crop where one class has more is drawn again, up to 10
            times; 1 takes the first.
        colour_p: share of images with other colours: exponent 0.8 to 1.25, factor 0.75 to 1.25 on all
            channels and 0.85 to 1.15 on each.

    Raises:
        ValueError: a value is outside its range.
    """

    scale: tuple[float, float] = setting((0.5, 2.0), length=2, above=0)
    base: str = setting("crop", choices=BASES)
    most_of_one_class: float = setting(0.75, above=0, most=1)
    colour_p: float = setting(0.5, least=0, most=1)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale={list(self.scale)}: expected the smaller number first")

    def draw(
        self, height: int, width: int, crop_hw: tuple[int, int], seed: int, labels: Labels
    ) -> "PaddedCrop":
        """Returns the crop of an image [height width]; `seed` determines all random choices."""
        random = np.random.default_rng(seed)
        factor = random.uniform(*self.scale)
        base = covering_size(height, width, crop_hw) if self.base == "crop" else (height, width)
        resized = max(1, round(base[0] * factor)), max(1, round(base[1] * factor))
        inner = min(crop_hw[0], resized[0]), min(crop_hw[1], resized[1])
        flip = bool(random.integers(2))
        ranges = (GAMMA, BRIGHTNESS, CHANNELS, CHANNELS, CHANNELS)
        colours = tuple(float(random.uniform(*each)) for each in ranges)
        kept_colours = colours if random.random() < self.colour_p else None
        for _ in range(TRIES):
            top = int(random.integers(resized[0] - inner[0] + 1))
            left = int(random.integers(resized[1] - inner[1] + 1))
            crop = PaddedCrop(Crop(resized, top, left, *inner, flip), crop_hw, kept_colours)
            if self.most_of_one_class >= 1 or share_of_largest(labels, crop) <= self.most_of_one_class:
                break
        return crop


@dataclass(frozen=True)
class PaddedCrop:
    """A crop with padding at the right and the lower edge, where the resized image is smaller.

    padded_hw: height and width with the padding.
    colours: see `data.views.recoloured`; None = as they are.
    """

    crop: Crop
    padded_hw: tuple[int, int]
    colours: tuple[float, ...] | None = None

    def of_image(self, photo: Photo) -> NDArray[np.uint8]:
        """Returns what the network sees, [h w 3] uint8."""
        seen = self.crop.of_image(photo)
        if self.colours is not None:
            seen = recoloured(seen, self.colours)
        if seen.shape[:2] == self.padded_hw:
            return seen
        padded = np.empty((*self.padded_hw, 3), np.uint8)
        padded[:] = PADDING
        padded[: seen.shape[0], : seen.shape[1]] = seen
        return padded

    def of_map(self, values: NDArray) -> NDArray:
        """Returns the crop of `values` [h w] of any type by nearest neighbour; 0 or False in the padding."""
        seen = self.crop.of_map(values)
        if seen.shape == self.padded_hw:
            return seen
        padded = np.zeros(self.padded_hw, values.dtype)
        padded[: seen.shape[0], : seen.shape[1]] = seen
        return padded


def share_of_largest(labels: Labels, crop: PaddedCrop) -> float:
    """Returns the share of the known pixels of a crop that its most frequent class has; 1 if none is
    known.
    """
    known = crop.crop.of_map(labels.valid)
    numbers = crop.crop.of_map(labels.values)[known].astype(np.int64)
    return float(np.bincount(numbers).max() / len(numbers)) if len(numbers) else 1.0
