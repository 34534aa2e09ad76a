"""The views of metric fine-tuning: a crop or the whole of an image, slightly turned and recoloured.

Source: ZoeDepth's data loader (github.com/isl-org/ZoeDepth, zoedepth/data), which Depth Anything V1 uses for
its metric models; V2 takes the random crop of `draw_crop`, as relative depth does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from depthany.data.images import Photo
from depthany.data.transforms import Crop, draw_crop
from depthany.system.rules import check_fields, setting

VIEWS = ("crop", "whole")


@dataclass(frozen=True)
class Views:
    """How a labeled image becomes what the network sees. The defaults change nothing about the random crop.

    Attributes:
        view: `crop`, a random crop of the image, whose labels are resized with it by nearest neighbour; or
            `whole`: the image is stretched to the size of the crop, and the labels keep their own size.
        bottom_centre: by name of a labeled set, the [height, width] in pixels that are cut from the middle of
            the lower edge of its images and labels first. KITTI: [352, 1216].
        rotation: degrees; the angle is drawn from -x to +x. Corners become black, and have no label.
        colour_p: share of images with other colours.
        gamma, brightness, channels: ranges of the exponent, of the factor on all channels, and of the factor
            on each channel of an image with values 0..1.

    Raises:
        ValueError: a value is outside its range.
    """

    view: str = setting("crop", choices=VIEWS)
    bottom_centre: dict[str, list[int]] | None = None
    rotation: float = setting(0.0, least=0, most=45)
    colour_p: float = setting(0.0, least=0, most=1)
    gamma: tuple[float, float] = setting((0.9, 1.1), length=2, above=0)
    brightness: tuple[float, float] = setting((0.9, 1.1), length=2, above=0)
    channels: tuple[float, float] = setting((0.9, 1.1), length=2, above=0)

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("gamma", "brightness", "channels"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}={[low, high]}: expected the smaller number first")
        for name, sides in (self.bottom_centre or {}).items():
            if len(sides) != 2 or min(sides) < 1:
                raise ValueError(f"bottom_centre.{name}={list(sides)}: expected [height, width] in pixels")

    @property
    def needs_whole_files(self) -> bool:
        """Whether images must be decoded at their full size."""
        return self.view == "whole" or bool(self.bottom_centre) or self.rotation > 0

    def draw(self, name: str, height: int, width: int, crop_hw: tuple[int, int], seed: int) -> "View":
        """Returns the view of an image; `seed` determines all random choices.

        Args:
            name: name of its set. height, width: height and width of the image, in pixels.
            crop_hw: height and width of what the network sees.

        Raises:
            ValueError: the image is smaller than what is cut from the images of its set.
        """
        cut_hw = height, width
        if self.bottom_centre and name in self.bottom_centre:
            cut_hw = self.bottom_centre[name][0], self.bottom_centre[name][1]
            if cut_hw[0] > height or cut_hw[1] > width:
                raise ValueError(
                    f"an image of {name} is {width}x{height}, too small for stage.views.bottom_centre.{name}="
                    f"{list(cut_hw)}, [height, width]: choose a smaller one, or leave it out"
                )
        random = np.random.default_rng([seed, 1])  # not the stream of the crop
        angle = float(random.uniform(-self.rotation, self.rotation))
        recoloured = random.random() < self.colour_p
        ranges = (self.gamma, self.brightness, *(self.channels,) * 3)
        colours = [float(random.uniform(*each)) for each in ranges]
        if self.view == "crop":
            taken: Crop | Stretch = draw_crop(*cut_hw, crop_hw, seed)
        else:
            taken = Stretch(crop_hw, flip=bool(random.integers(2)))
        return View(cut_hw, angle, taken, colours if recoloured else None)


@dataclass(frozen=True)
class Stretch:
    """The whole image at another size and ratio of width to height, possibly mirrored."""

    resized_hw: tuple[int, int]
    flip: bool

    def of_image(self, photo: Photo) -> NDArray[np.uint8]:
        """Returns the image [h w 3] uint8, bilinear with aligned corners and without antialiasing, as
        ZoeDepth resizes it.
        """
        pixels, (height, width) = photo.pixels, self.resized_hw
        scales = (width - 1) / max(photo.width - 1, 1), (height - 1) / max(photo.height - 1, 1)
        change = np.array([[scales[0], 0, 0], [0, scales[1], 0]])
        resized = cv2.warpAffine(pixels, change, (width, height), borderMode=cv2.BORDER_REPLICATE)
        return np.ascontiguousarray(resized[:, ::-1] if self.flip else resized, dtype=np.uint8)

    def of_map(self, values: NDArray) -> NDArray:
        """Returns `values` [h w] of any type at their own size."""
        return np.ascontiguousarray(values[:, ::-1]) if self.flip else values


@dataclass(frozen=True)
class View:
    """What is done to one image and its labels, in this order.

    cut_hw: height and width of what is cut from the middle of the lower edge.
    angle: degrees of a turn about the middle, counter-clockwise.
    taken: what is left of it, at which size.
    colours: exponent, factor on all channels, factors on R, G and B; None = as they are.
    """

    cut_hw: tuple[int, int]
    angle: float
    taken: Crop | Stretch
    colours: Sequence[float] | None

    @property
    def magnification(self) -> float:
        """Width, in pixels of the network's input, of one pixel of the image."""
        return self.taken.resized_hw[1] / self.cut_hw[1]

    def of_image(self, photo: Photo) -> NDArray[np.uint8]:
        """Returns what the network sees, [h w 3] uint8."""
        pixels = photo.pixels
        if self.cut_hw != (photo.height, photo.width) or self.angle:
            pixels = self._turned(self._cut(pixels), cv2.INTER_LINEAR)
            photo = Photo(pixels, *pixels.shape[:2])
        seen = self.taken.of_image(photo)
        return seen if self.colours is None else recoloured(seen, self.colours)

    def of_map(self, values: NDArray) -> NDArray:
        """Returns what is left of `values` [h w], of their type; corners that the turn leaves empty are 0."""
        return self.taken.of_map(self._turned(self._cut(values), cv2.INTER_NEAREST))

    def _cut(self, plane: NDArray) -> NDArray:
        height, width = self.cut_hw
        left = (plane.shape[1] - width) // 2
        return plane[plane.shape[0] - height :, left : left + width]

    def _turned(self, plane: NDArray, interpolation: int) -> NDArray:
        if not self.angle:
            return plane
        height, width = plane.shape[:2]
        turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), self.angle, 1.0)
        is_mask = plane.dtype == np.bool_
        source = plane.view(np.uint8) if is_mask else plane
        turned = cv2.warpAffine(np.ascontiguousarray(source), turn, (width, height), flags=interpolation)
        return turned.view(np.bool_) if is_mask else turned


def recoloured(image: NDArray[np.uint8], colours: Sequence[float]) -> NDArray[np.uint8]:
    """Returns an image [h w 3] uint8 with other colours: a power, then factors, then cut off at white.

    Args:
        colours: exponent of values 0..1, factor on all channels, factors on R, G and B.
    """
    gamma, brightness, *channels = colours
    curve = (np.arange(256) / 255.0) ** gamma * brightness  # [256]
    table = np.clip(curve[:, None] * np.asarray(channels), 0, 1) * 255  # [256 3]
    return cv2.LUT(image, table.round().astype(np.uint8)[None])  # type: ignore[return-value]
