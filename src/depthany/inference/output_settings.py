"""What the values of a prediction are, and how they are shown and stored."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from depthany.display.class_pictures import palette
from depthany.inference.points import depth_between
from depthany.models.output import Quantity

MILLIMETRES = 1000.0  # stored value of one metre
LARGEST_16BIT = 65535  # the largest 16-bit number


@dataclass(frozen=True)
class OutputSettings:
    """What the values of a prediction are, and how they are shown.

    Args:
        quantity: disparity, whose scale and shift mean nothing, depth in metres, or classes.
        colour_map: a name in `depthany.display.pictures.COLOUR_MAPS`.
        range_m: (nearest, farthest) of point clouds, in metres. The ends of a disparity are mapped to it;
            points of a metric model outside it are left out.
        focal_px: focal length in pixels; None: it follows from `fov_deg`, the horizontal field of view.
        per_metre: stored value of one metre in 16-bit files.
        stored_span: smallest and largest disparity of 16-bit files; None: those of each map.
        metres: what the metres of a metric model are, in words; see `TrainedOn.unit`.
        legend: whether pictures of depth have rows with near, far and their unit below, where there is room.
    """

    quantity: Quantity
    colour_map: str = "spectral_r"
    range_m: tuple[float, float] | None = None
    focal_px: float | None = None
    fov_deg: float = 60.0
    per_metre: float = MILLIMETRES
    stored_span: tuple[float, float] | None = None
    metres: str = "metres"
    legend: bool = False

    @property
    def is_of_classes(self) -> bool:
        """Whether the values are class numbers."""
        return self.quantity.kind == "classes"

    @property
    def palette(self) -> NDArray[np.uint8]:
        """The colours [256 3] uint8 RGB of class numbers."""
        return palette(self.quantity.class_colours, len(self.quantity.class_names))

    def nearness(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the values [h w] with the sign that makes larger nearer."""
        return values if self.quantity.larger_is_nearer else -values

    def unit_16bit(self, values: NDArray[np.float32]) -> tuple[str, float, float]:
        """Returns the words, scale and offset of a 16-bit file: `values` [h w] are offset + scale * stored.

        Metres are stored in millimetres, or as `per_metre` says; depth beyond the largest number becomes that
        number. A disparity is stored from its smallest to its largest value.
        """
        if not self.quantity.is_metric:
            low, high = self.stored_span or (float(values.min()), float(values.max()))
            return "disparity, of unknown scale and shift", max(high - low, 1e-12) / LARGEST_16BIT, low
        return f"depth in {self.metres}", 1 / self.per_metre, 0.0

    @property
    def largest_16bit_m(self) -> float:
        """The largest depth in metres that a 16-bit file can hold."""
        return LARGEST_16BIT / self.per_metre

    @property
    def unit_of_16bit(self) -> str:
        """The unit of 16-bit files of metres, in words."""
        return "millimetres" if self.per_metre == MILLIMETRES else f"1/{self.per_metre:g} m"

    def beyond_16bit(self, values: NDArray[np.float32]) -> int:
        """Returns how many metres in `values` [h w] exceed the largest 16-bit number; 0 of a disparity."""
        if not self.quantity.is_metric:
            return 0
        return int(np.count_nonzero(values > self.largest_16bit_m))

    def depth_m(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns depth_m [h w] of the values; NaN for points that are left out."""
        if not self.quantity.is_metric:
            assert self.range_m is not None, "checked before anything is predicted"
            return depth_between(values, *self.range_m)
        near, far = self.range_m or (0.0, np.inf)
        return np.where((values > 0) & (near <= values) & (values <= far), values, np.nan)
