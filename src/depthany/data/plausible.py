"""Do the labels of a set look like what its settings say? For check_data, training and evaluation alike."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depthany.data.histogram import DepthHistogram
from depthany.data.labeled import Decoded, PairedDepth
from depthany.data.samples import UnknownUnit
from depthany.data.targets import Labels
from depthany.system.packages import MissingPackage

NEAREST_M = 0.05  # a set whose median depth is nearer has another unit
OUTSIDE = 0.25  # share of the known depth that may lie outside of the range of the set without a warning
PERCENTILES = (1, 10, 50, 90, 99)  # of the depth, in the table of a metric run
LEAST_FILES, MOSTLY = 4, 0.85  # files, and share of them, that say that near is large
SPARSE = 0.2  # share of the pixels with depth, below which it is sparse
MOST_EMPTY = 5  # the range of a set may reach this many times as far as its depth
ONE_VALUE = 1e-3  # least share of the pixels at which the largest 16-bit number is taken for something else
FILES = 8  # read of a set where not all are
USUAL_M = (0.2, 200.0)  # a median depth that makes a unit likely
SCALES = {  # stored value of one metre -> what such values are, the likeliest first
    1: "metres",
    1000: "millimetres",
    100: "centimetres",
    256: "1/256 m (KITTI)",
    5000: "1/5000 m (TUM)",
}


@dataclass
class SeenLabels:
    """What was found in the labels of a set, in all of its files or in some.

    files: how many were read.
    known: known values in the unit of the set, without sky, in its range or not.
    stored_as: how many files have each type of number, if the reader says it.
    resized: how many were resized to their image; example: one of them, as `320x240 to 640x480`.
    pixels: in all files that were read whole, known or not.
    tops, bottoms: in how many files the median of the upper, or of the lower third of the image is larger.
    """

    files: int = 0
    known: DepthHistogram = field(default_factory=DepthHistogram)
    stored_as: Counter[str] = field(default_factory=Counter)
    resized: int = 0
    example: str = ""
    pixels: int = 0
    tops: int = 0
    bottoms: int = 0

    def add(self, decoded: Decoded) -> None:
        """Counts the labels of one file."""
        known = known_pixels(decoded, decoded.sky)
        self.known.add(decoded.values[known])
        self.pixels += known.size
        third = len(known) // 3
        top, bottom = (decoded.values[rows][known[rows]] for rows in (slice(third), slice(-third, None)))
        if third and top.size and bottom.size:
            self.tops += bool(np.median(top) > np.median(bottom))
            self.bottoms += bool(np.median(top) < np.median(bottom))
        sizes = decoded.resized_from and describe_resize(decoded.resized_from, decoded.values.shape)
        self.count(decoded.stored_as, sizes or "")

    def count(self, stored_as: str, resized: str) -> None:
        """Counts a file by the type of its numbers, and by the sizes of its labels if they were resized."""
        self.files += 1
        if stored_as:
            self.stored_as[stored_as] += 1
        if resized:
            self.resized += 1
            self.example = self.example or resized

    def notes(self) -> list[str]:
        """Returns a line if depth was resized."""
        if not self.resized:
            return []
        return [f"{self.resized} of {self.files} depth maps read are resized to their image: {self.example}"]


def known_pixels(decoded: Decoded, without: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Returns [h w] bool, True where the file holds a finite value above 0 that is not masked.

    Args:
        without: [h w] bool, pixels that are left out, such as the sky.
    """
    known = decoded.valid & (decoded.values > 0) & (decoded.values < np.inf)
    return known if without is None else known & ~without


def describe_resize(stored_hw: tuple[int, ...], hw: tuple[int, ...]) -> str:
    """Returns two sizes such as `320x240 to 640x480`."""
    return f"{stored_hw[1]}x{stored_hw[0]} to {hw[1]}x{hw[0]}"


def look_at(dataset: Any, files: int = FILES) -> SeenLabels:
    """Reads the labels of some images, evenly spaced. Skips a file that cannot be read.

    Raises:
        ValueError: the settings do not say the unit of the labels, or a package is not installed.
    """
    seen = SeenLabels()
    for k in range(min(files, len(dataset))):
        index = k * len(dataset) // min(files, len(dataset))
        try:
            seen.add(_decoded(dataset, index))
        except (UnknownUnit, MissingPackage):
            raise
        except ValueError:
            continue
    return seen


def _decoded(dataset: Any, index: int) -> Decoded:
    if isinstance(dataset, PairedDepth):
        return dataset.decode(dataset.pairs[index])
    labels: Labels = dataset.labels(index)
    return Decoded(labels.values, labels.valid, labels.sky)


def label_notes(
    sets: Mapping[str, Any], metric: Mapping[str, float] | None = None, is_resized: bool = True
) -> tuple[list[str], list[str]]:
    """Returns warnings and notes about labeled sets, by name, from a look at some files of each.

    Args:
        metric: name of each set whose metres are learned -> metres up to which they are, or infinity: the
            notes then have a table of their depth, and warnings if it does not fit what is learned.
        is_resized: whether these labels are resized with their image.

    Raises:
        ValueError: see `look_at`; the message begins with the name of the set.
    """
    warnings, notes, table = list[str](), list[str](), dict[str, SeenLabels]()
    for name, dataset in sets.items():
        try:
            seen = look_at(dataset)
        except UnknownUnit as error:
            raise UnknownUnit(f"{name}: {error}") from None
        warnings += [f"{name}: {line}" for line in doubts(dataset, seen)]
        notes += [f"{name}: {line}" for line in seen.notes()]
        if metric and name in metric:
            table[name] = seen
            lines = [*_of_direction(seen), *_of_empty_range(seen, metric[name])]
            warnings += [f"{name}: {line}" for line in lines + (_of_sparse(seen) if is_resized else [])]
    return warnings, notes + depth_table(table, sets)


def depth_table(seen: Mapping[str, SeenLabels], sets: Mapping[str, Any]) -> list[str]:
    """Returns the lines of a table of depth: percentiles in metres, share known, share out of range.

    Args:
        seen, sets: what was found in each labeled set, and the sets, by name. Empty = no table.
    """
    if not seen:
        return []
    heads = [*(f"{percent} %" for percent in PERCENTILES), "known", "out of range"]
    rows = [["metres, of some files", *heads]]
    for name, found in seen.items():
        known, dataset = found.known, sets[name]
        outside = known.share_below(dataset.min_depth) + known.share_above(dataset.max_depth)
        rows.append(
            [
                f"{name}, {found.files} of {len(dataset)}",
                *(f"{known.percentile(percent):.3g}" for percent in PERCENTILES),
                f"{known.total / max(found.pixels, 1):.0%}",
                f"{outside:.1%} of {dataset.min_depth:g} to {dataset.max_depth:g}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(n) for cell, n in zip(row[1:], widths[1:]))])
        for row in rows
    ]


def _of_empty_range(seen: SeenLabels, end_m: float) -> list[str]:
    """Returns a line if the depth uses little of the range, up to `end_m`, that a head has for it."""
    far_m = seen.known.percentile(99)
    if not seen.known.total or far_m * MOST_EMPTY >= end_m or end_m == math.inf:
        return []
    return [
        f"99 % of the depth is nearer than {far_m:.3g} m, but the model learns up to {end_m:g} m: set "
        "max_depth of the set, or stage.far_m, to the end of your range"
    ]


def _of_sparse(seen: SeenLabels) -> list[str]:
    """Returns a line if few pixels have depth, which is resized with the random crop."""
    share = seen.known.total / max(seen.pixels, 1)
    if not 0 < share < SPARSE:
        return []
    return [
        f"only {share:.1%} of the pixels have depth, and the random crop resizes it by nearest neighbour, "
        "which drops points: for sparse depth, such as LiDAR, set stage.views.view=whole"
    ]


def _of_direction(seen: SeenLabels) -> list[str]:
    """Returns a line if the values are larger in the lower part of nearly all images, as disparity is."""
    files = seen.tops + seen.bottoms
    if files < LEAST_FILES or seen.bottoms < MOSTLY * files:
        return []
    return [
        f"in {seen.bottoms} of {files} images the values are larger in the lower third than in the upper "
        "one, but the lower part of an image is mostly nearer: is this disparity, not depth? "
        "(quantity=disparity, which has no metres)"
    ]


def doubts(dataset: Any, seen: SeenLabels, range_m: tuple[float, float] | None = None) -> list[str]:
    """Returns a line for each sign that the labels are not what the settings of their set say.

    Args:
        dataset: a labeled set. Only depth in metres can be doubted.
        seen: what was found in its labels.
        range_m: nearest and farthest depth that count, such as those of a protocol; None = of the set.
    """
    if getattr(dataset, "unit", None) != "m":
        return []
    lines = _of_types(dataset, seen.stored_as)
    if not seen.known.total or not getattr(dataset, "scale_is_known", True):
        return lines
    own = range_m is None
    low, high = range_m or (float(dataset.min_depth), float(dataset.max_depth))
    median, cause = seen.known.percentile(50), _likely_unit(dataset, seen, low, high)
    what = f"the median of the known depth is {median:.3g} m"
    if median < max(NEAREST_M, low):
        limit = f"min_depth={low:g}" if low > NEAREST_M else f"{100 * NEAREST_M:g} cm"
        lines.append(f"{what}, nearer than {limit}{cause}")
    elif median > high:
        lines.append(f"{what}, farther than max_depth={high:g}{cause}")
    elif own:
        lines += _of_range(seen.known, low, high)
    return lines + _of_ends(dataset, seen.known)


def _of_types(dataset: Any, stored_as: Mapping[str, int]) -> list[str]:
    """Returns lines about the types of the stored numbers."""
    lines, files = list[str](), sum(stored_as.values())
    small = sum(n for name, n in stored_as.items() if np.dtype(name).itemsize == 1)
    if small:
        lines.append(
            f"{small} of {files} depth maps have 8 bits, at most 255 distances: a picture of the depth, or "
            "relative values (quantity=disparity if larger is nearer)?"
        )
    kinds = {np.dtype(name).kind == "f" for name in stored_as}
    if len(kinds) > 1:
        types = ", ".join(f"{n} {name}" for name, n in sorted(stored_as.items()))
        scale = f"depth_scale={dataset.depth_scale:g}"
        lines.append(f"float and integer depth maps share {scale}: {types}: do they have the same unit?")
    return lines


def _likely_unit(dataset: Any, seen: SeenLabels, low: float, high: float) -> str:
    """Returns the end of a line: the stored median, and the unit that it looks like."""
    if not hasattr(dataset, "depth_scale"):
        return ": are these the files of the data set, as it publishes them?"
    scale = dataset.depth_scale or 1.0
    stored = seen.known.percentile(50) * scale
    said = "null, that is metres" if dataset.depth_scale is None else f"{scale:g}"
    where = f" (stored: {stored:.4g} at depth_scale={said})"
    near, far = max(low, USUAL_M[0]), min(high, USUAL_M[1])
    for other, what in SCALES.items():
        if other != scale and near <= stored / other <= far:
            return f"{where}: the stored values look like {what}: depth_scale={other}"
    return f"{where}: no usual unit puts it into the range: correct depth_scale, min_depth or max_depth"


def _of_range(known: DepthHistogram, low: float, high: float) -> list[str]:
    """Returns a line if much of the depth is out of range."""
    near, far = known.share_below(low), known.share_above(high)
    if near + far <= OUTSIDE:
        return []
    parts = [f"{near:.0%} nearer than min_depth={low:g}"] if near >= 0.005 else []
    parts += [f"{far:.0%} farther than max_depth={high:g}"] if far >= 0.005 else []
    return [
        f"{near + far:.0%} of the known depth is out of range and does not count ({', '.join(parts)}; the "
        f"median is {known.percentile(50):.3g} m): correct the range, or the unit"
    ]


def _of_ends(dataset: Any, known: DepthHistogram) -> list[str]:
    """Returns a line if the largest value is the end of a range of numbers, not a distance."""
    if not hasattr(dataset, "depth_scale"):
        return []
    largest = known.high * (dataset.depth_scale or 1.0)
    if math.isclose(largest, 1, rel_tol=1e-6):
        return ["the largest stored value is exactly 1: values scaled to 0..1 have no unit"]
    share = known.share_of_largest()
    if math.isclose(largest, 65535, rel_tol=1e-6) and dataset.sky_value is None and share >= ONE_VALUE:
        return [
            f"{share:.1%} of the known depth is stored as 65535, the end of 16 bits: sky? sky_value=65535"
        ]
    return []
