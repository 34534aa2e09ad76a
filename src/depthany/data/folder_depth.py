"""A user's own pairs: image and depth, or relative disparity, as files with equal stems."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags

from depthany.data.depth_files import DEPTH_SUFFIXES, ArrayKeys, one_channel, read_stored
from depthany.data.folders import list_files
from depthany.data.image_formats import image_suffixes, open_image
from depthany.data.images import read_bytes, turned_by_decoder
from depthany.data.labeled import Decoded, PairedDepth
from depthany.data.pairs import Pair
from depthany.data.samples import UnknownUnit
from depthany.data.targets import Unit
from depthany.system.choices import require_choice
from depthany.system.packages import reason

UNIT_OF: dict[str, Unit] = {"depth": "m", "disparity": "disparity"}  # quantity -> unit of the labels
RESIZES = ("nearest",)
_USUAL = ((1000, "millimetres"), (100, "centimetres"), (256, "KITTI"), (5000, "TUM"), (1, "metres"))


class FolderDepth(PairedDepth):
    """Image and depth files with equal stems in two folders below `root`, or in one.

    Float files (`.npy`, `.npz`, `.h5`, `.pfm`, `.exr`, `.dpt`, float TIFF) are in metres unless `depth_scale`
    says otherwise. Integers have no usual unit, so `depth_scale` must say it.

    With `quantity=disparity` the numbers are relative: larger is nearer, scale and shift are unknown, in 8 or
    16 bits or float, also as three equal channels. 0 and negative numbers are unknown; `sky_value=0` makes 0
    the sky, which is infinitely far.

    Args:
        root: folder that holds both.
        images, depth: names of the two folders; `.` is `root` itself.
        depth_scale: stored value of one metre (1000 for millimetres, 1 for metres). None = 1 for floats;
            integers are an error.
        quantity: `depth` or `disparity`.
        sky_value: stored value of sky (paper, section 3.1); None if there is none.
        h5_key, npz_key, exr_channel: see `ArrayKeys`.
        image_suffix, depth_suffix: how the names of the files end, such as `_rgb.png` and `_depth.png`, or
            `_depth` with any suffix; the part before it is the stem. None = any name.
        resize_depth: `nearest` resizes depth of another resolution to that of its image, by the nearest
            pixel; the ratio of width to height must agree. None = such a pair is an error.
        min_depth, max_depth: see `PairedDepth`. The range does not apply to disparity.
        common: see `PairedDepth`.

    Raises:
        ValueError: a folder is missing or empty, a file has no partner in the other folder, or two settings
            contradict each other.
    """

    def __init__(
        self,
        root: str,
        images: str = "images",
        depth: str = "depth",
        depth_scale: float | None = None,
        quantity: str = "depth",
        sky_value: float | None = None,
        min_depth: float | None = None,
        max_depth: float | None = None,
        h5_key: str = "depth",
        npz_key: str | None = None,
        exr_channel: str | None = None,
        image_suffix: str | None = None,
        depth_suffix: str | None = None,
        resize_depth: str | None = None,
        **common: Any,
    ) -> None:
        require_choice("quantity", quantity, UNIT_OF)
        if resize_depth is not None:
            require_choice("resize_depth", resize_depth, RESIZES)
        if depth_scale is not None and depth_scale <= 0:
            raise ValueError(f"depth_scale={depth_scale}: expected the stored value of one metre, above 0")
        if depth_scale is not None and quantity == "disparity":
            raise ValueError(
                f"depth_scale={depth_scale:g} is for depth in metres, but quantity=disparity has no known "
                "scale: leave one of them out"
            )
        self.images, self.depth, self.unit = images, depth, UNIT_OF[quantity]
        self.depth_scale, self.sky_value, self.resize_depth = depth_scale, sky_value, resize_depth
        self.keys = ArrayKeys(h5_key, npz_key, exr_channel)
        self.image_suffix, self.depth_suffix = image_suffix or "", depth_suffix or ""
        super().__init__(root, min_depth, max_depth, **common)

    def find(self) -> tuple[Sequence[Pair], list[str]]:
        folders = self.root / self.images, self.root / self.depth
        nested = folders[0] in (folders[1], *folders[1].parents) or folders[1] in folders[0].parents
        passed_over = None if nested else self.passed_over  # the one list holds files of the other
        images = files_by_stem(folders[0], image_suffixes(), self.image_suffix, passed_over)
        depths = files_by_stem(folders[1], DEPTH_SUFFIXES, self.depth_suffix, passed_over)
        if self.depth_suffix and not self.image_suffix:  # in one folder the depth files are images, too
            taken = set(depths.values())
            images = {stem: path for stem, path in images.items() if path not in taken}
        return paired(images, depths, (self.images, self.image_suffix), (self.depth, self.depth_suffix))

    def image_folder(self) -> Path:
        return self.root / self.images

    def decode(self, pair: Pair) -> Decoded:
        stored = read_stored(pair.depth, self.keys)
        in_metres = self.unit == "m"
        plane = self._of_known_unit(pair.depth, stored) if in_metres else gray(pair.depth, stored)
        values = plane.astype(np.float32)  # [h w]
        sky = None if self.sky_value is None else values == self.sky_value
        if self.depth_scale is not None:
            values /= self.depth_scale  # in place: new memory would cost as much as the division
        valid = np.ones(values.shape, bool) if in_metres else values > 0
        return self._at_size_of_image(pair, Decoded(values, valid, sky, str(stored.dtype)))

    def _of_known_unit(self, path: Path, stored: NDArray[Any]) -> NDArray[Any]:
        """Returns stored depth as one channel [h w]. Raises UnknownUnit if the settings do not say its
        unit.
        """
        if stored.ndim == 3 and stored.shape[2] in (3, 4):
            gray(path, stored)  # raises where the channels differ
            raise ValueError(
                f"{path}: expected one channel of depth, got {stored.dtype} of shape {stored.shape}, a "
                "picture of it: quantity=disparity takes three equal channels as relative disparity"
            )
        plane = one_channel(path, stored)
        if self.depth_scale is None and plane.dtype.kind != "f":
            usual = ", ".join(f"{scale} ({what})" for scale, what in _USUAL)
            relative = "quantity=disparity if larger is nearer and the scale is unknown"
            raise UnknownUnit(
                f"{path}: depth is stored as {plane.dtype}, but depth_scale does not say the stored value of "
                f"one metre: set depth_scale={usual}; or {relative}"
            )
        return plane

    def _at_size_of_image(self, pair: Pair, decoded: Decoded) -> Decoded:
        """Returns the depth, resized to its image if `resize_depth` allows it."""
        if self.resize_depth is None:
            return decoded
        hw, image_hw = decoded.values.shape, _image_hw(pair.image, self.upright)
        if hw == image_hw:
            return decoded
        a_pixel = max(min(hw), min(image_hw))  # of the smaller map: its sides were rounded
        if abs(hw[0] * image_hw[1] - hw[1] * image_hw[0]) >= a_pixel:
            raise ValueError(
                f"{pair.depth}: depth is {hw[1]}x{hw[0]}, its image {pair.image} is "
                f"{image_hw[1]}x{image_hw[0]}: resize_depth needs the same ratio of width to height"
            )
        sky = None if decoded.sky is None else _nearest(decoded.sky, image_hw)
        return replace(
            decoded,
            values=_nearest(decoded.values, image_hw),
            valid=_nearest(decoded.valid, image_hw),
            sky=sky,
            resized_from=(hw[0], hw[1]),
        )

    def range_text(self) -> str:
        if self.unit == "disparity":
            return "(disparity above 0): remove the pair"
        scale = "" if self.depth_scale is None else f" at depth_scale={self.depth_scale:g}"
        return (
            f"(between {self.min_depth} and {self.max_depth} m{scale}): "
            "remove the pair, or correct depth_scale or max_depth"
        )


def gray(path: Path, stored: NDArray[Any]) -> NDArray[Any]:
    """Returns one channel [h w] of the gray picture `stored` [h w] or [h w c], whose colours must be equal.

    Alpha, as a second or fourth channel, is dropped if it is the same everywhere.

    Raises:
        ValueError: the channels differ, or alpha varies.
    """
    if stored.ndim == 3 and stored.shape[2] in (2, 4):
        alpha = stored[:, :, -1]
        if (alpha != alpha[0, 0]).any():
            raise ValueError(f"{path}: its alpha varies, which has no meaning here: store it without alpha")
        stored = stored[:, :, :-1]
    if stored.ndim == 3 and stored.shape[2] == 3:
        first = stored[:, :, 0]
        if any(not np.array_equal(first, stored[:, :, c], stored.dtype.kind == "f") for c in (1, 2)):
            raise ValueError(
                f"{path}: expected one channel, or three equal ones, but these differ: a colour-mapped "
                "picture? Its numbers are lost; store gray values"
            )
        return first
    return one_channel(path, stored)


def files_by_stem(
    folder: Path, suffixes: tuple[str, ...], ending: str, passed_over: Counter[str] | None
) -> dict[str, Path]:
    """Returns the files below a folder by stem, which ends before `ending`; see `list_files`."""
    if not ending:
        return list_files(folder, suffixes, passed_over)
    stem_ending, dot, suffix = ending.rpartition(".")
    if dot and f".{suffix.lower()}" in suffixes:
        found = list_files(folder, (ending.lower(),), passed_over)
    else:
        stem_ending = ending
        found = list_files(folder, tuple(ending.lower() + suffix for suffix in suffixes), passed_over)
    return {stem[: len(stem) - len(stem_ending)]: path for stem, path in found.items()}


def paired(
    images: Mapping[str, Path],
    labels: Mapping[str, Path],
    image_names: tuple[str, str],
    label_names: tuple[str, str],
) -> tuple[list[Pair], list[str]]:
    """Returns pairs of files with equal stems, and the files without partner.

    Args:
        images, labels: by stem, see `files_by_stem`.
        image_names, label_names: folder and ending of their names, for the list of those without partner.
    """
    alone = [(image_names, stem) for stem in images if stem not in labels]
    alone += [(label_names, stem) for stem in labels if stem not in images]
    pairs = [Pair(stem, images[stem], labels[stem]) for stem in images if stem in labels]
    return pairs, sorted(f"{folder}/{stem}{ending}" for (folder, ending), stem in alone)


def _image_hw(path: Path, upright: bool) -> tuple[int, int]:
    """Returns height and width of an image from its header, as displayed (`upright`) or as stored."""
    try:
        with open_image(read_bytes(path)) as file:
            (width, height), orientation = file.size, file.getexif().get(ExifTags.Base.Orientation, 1)
            is_displayed = turned_by_decoder(file) != 1  # `size` is that of the image as displayed
    except Exception as error:  # a damaged file can raise almost anything in Pillow
        raise ValueError(f"{path}: cannot read the image: {reason(error)}") from None
    is_swapped = orientation in (5, 6, 7, 8) and upright != is_displayed
    return (width, height) if is_swapped else (height, width)


def _nearest(plane: NDArray[Any], hw: tuple[int, int]) -> NDArray[Any]:
    """Returns a plane [h w] at another size; each pixel takes the value at its centre."""
    numbers = plane.view(np.uint8) if plane.dtype == np.bool_ else plane
    resized = cv2.resize(numbers, (hw[1], hw[0]), interpolation=cv2.INTER_NEAREST_EXACT)
    return resized.view(np.bool_) if plane.dtype == np.bool_ else resized
