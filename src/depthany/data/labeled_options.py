"""How a stage wants labeled images, and the target that follows from it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depthany.data.class_crops import ClassCrops, PaddedCrop
from depthany.data.targets import Labels, make_target, within_m
from depthany.data.transforms import Crop, draw_crop
from depthany.data.views import View, Views

Taken = Crop | View | PaddedCrop  # the region taken from an image


@dataclass(frozen=True)
class LabeledCrop:
    """A labeled image as a stage takes it.

    image: [3 h w] uint8 RGB. target, mask: [H W], see `data.targets.Target`. domain: its number, or -1.
    """

    image: NDArray[np.uint8]
    target: NDArray
    mask: NDArray[np.bool_]
    domain: int = -1

    @property
    def label_hw(self) -> tuple[int, int]:
        """Height and width of the labels."""
        return self.mask.shape[0], self.mask.shape[1]


@dataclass(frozen=True)
class LabeledOptions:
    """How a stage wants labeled images; the defaults are those of relative depth.

    views: what is made of an image; None = the random crop.
    sets: names of the labeled sets, in their order.
    domains: number of the domain of each labeled set, for a model that tells domains apart.
    near_m, far_m: the target `depth_m` is known strictly between them, and the labels of each set within its
        own range.
    ends_m: far end of the model's range for each labeled set; None = far_m is that of all.
    focal_px: focal length, in pixels of what the network sees, of the camera to which `depth_m` is scaled;
        None = depth stays as it is. Each set then has the attribute `focal`, and near_m, far_m and ends_m are
        metres of that camera.
    crops: how an image with classes is cropped, in place of `views`.
    """

    views: Views | None = None
    sets: Sequence[str] = ()
    domains: Sequence[int] | None = None
    near_m: float = 0.0
    far_m: float = math.inf
    ends_m: Sequence[float] | None = None
    focal_px: float | None = None
    crops: ClassCrops | None = None

    @property
    def needs_whole_files(self) -> bool:
        """Whether images must be decoded at their full size."""
        return self.crops is not None or (self.views is not None and self.views.needs_whole_files)

    @property
    def keeps_label_size(self) -> bool:
        """Whether labels have their own size, not that of the image that the network sees."""
        return self.views is not None and self.views.view == "whole"

    def draw(
        self, part: int, height: int, width: int, crop_hw: tuple[int, int], seed: int, labels: Labels
    ) -> Taken:
        """Returns the region taken from an image of set `part`; see `Views.draw` and `ClassCrops.draw`."""
        if self.crops is not None:
            return self.crops.draw(height, width, crop_hw, seed, labels)
        if self.views is None:
            return draw_crop(height, width, crop_hw, seed)
        return self.views.draw(self.sets[part], height, width, crop_hw, seed)

    def domain_of(self, part: int) -> int:
        """Returns the number of the domain of labeled set `part`; -1 where the stage has none."""
        return -1 if self.domains is None else self.domains[part]

    def far_end_m(self, part: int) -> float:
        """Returns the metres up to which labels of set `part` count, whatever the range of the set."""
        return self.far_m if self.ends_m is None else min(self.far_m, self.ends_m[part])

    def require_metres(self, data_set: Any) -> None:
        """Raises ValueError if a set has metres of unknown scale, or no focal length where one is needed."""
        if not getattr(data_set, "scale_is_known", True):
            raise ValueError("the scale of its reconstructions is unknown, so its depth is not in metres")
        if self.focal_px is not None and getattr(data_set, "focal", None) is None:
            raise ValueError(
                "stage.canonical_focal scales depth by the focal length, but focal of this set is null: set "
                "it (pixels), or stage.canonical_focal=null"
            )


PLAIN = LabeledOptions()


def labeled_target(
    name: str,
    labels: Labels,
    region: Taken,
    data_set: Any,
    width: int,
    options: LabeledOptions,
    part: int = 0,
) -> tuple[NDArray, NDArray[np.bool_]]:
    """Returns target and mask, both [h w], of a region; `options` say the range and scale of depth.

    Args:
        name: name of the target, in `data.targets.TARGETS`.
        data_set: whose range counts, `min_depth` and `max_depth`.
        width: width of the image, in pixels.
        part: number of the set.
    """
    target, mask = make_target(name, labels, region)
    if name != "depth_m":
        return target, mask
    near_m, far_m = options.near_m, options.far_end_m(part)
    if options.focal_px is None:
        return within_m(target, mask, max(near_m, data_set.min_depth), min(far_m, data_set.max_depth))
    assert not isinstance(region, PaddedCrop), "it is for classes"
    target, mask = within_m(target, mask, data_set.min_depth, data_set.max_depth)
    target *= np.float32(options.focal_px / focal_seen_px(data_set, width, region))
    return within_m(target, mask, near_m, far_m)  # the model's range is that of the scaled depth


def focal_seen_px(data_set: Any, width: int, region: Crop | View) -> float:
    """Returns the focal length in pixels of what the network sees.

    Args:
        data_set: `focal` is its focal length in pixels of an image that is `focal_width` pixels wide; None =
            as wide as the image is.
        width: width of the image, in pixels.
        region: what is taken from it, after resizing.
    """
    in_image = data_set.focal * width / (getattr(data_set, "focal_width", None) or width)
    grown = region.magnification if isinstance(region, View) else region.resized_hw[1] / width
    return float(in_image * grown)


def largest(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Returns the largest height and the largest width."""
    return max(height for height, _ in sizes), max(width for _, width in sizes)
