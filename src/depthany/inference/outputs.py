"""The files that a prediction is written to, and the settings that they share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from depthany.display.class_pictures import class_picture, overlay, palette
from depthany.display.pictures import COLOUR_MAPS, colour, steps
from depthany.inference.points import depth_between, focal_px_of, points_m
from depthany.models.output import Quantity
from depthany.system.files import write_atomically
from depthany.system.packages import optional

MILLIMETRES = 1000.0  # stored value of one metre
_LARGEST = 65535  # the largest 16-bit number


@dataclass(frozen=True)
class OutputSettings:
    """What the values of a prediction are, and how they are shown.

    Args:
        quantity: disparity, with a scale and shift of no meaning, depth in metres, or classes.
        colour_map: a name in `depthany.display.pictures.COLOUR_MAPS`.
        range_m: (nearest, farthest) of point clouds, in metres. The ends of a disparity are put there; points
            of a metric model beyond are left out.
        focal_px: focal length in pixels; None: it follows from `fov_deg`, the horizontal field of view.
        per_metre: stored value of one metre in 16-bit files.
        stored_span: smallest and largest disparity of 16-bit files; None: those of each map.
    """

    quantity: Quantity
    colour_map: str = "spectral_r"
    range_m: tuple[float, float] | None = None
    focal_px: float | None = None
    fov_deg: float = 60.0
    per_metre: float = MILLIMETRES
    stored_span: tuple[float, float] | None = None

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
            return "disparity, of unknown scale and shift", max(high - low, 1e-12) / _LARGEST, low
        return "depth in metres", 1 / self.per_metre, 0.0

    @property
    def largest_16bit_m(self) -> float:
        """The largest depth in metres that a 16-bit file can hold."""
        return _LARGEST / self.per_metre

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


def picture(
    values: NDArray[np.float32], settings: OutputSettings, span: tuple[float, float] | None = None
) -> NDArray:
    """Returns a picture [h w 3] uint8 RGB: the first colour of the map is farthest, the last one nearest;
    classes have their own colours.

    Args:
        values: [h w] a prediction.
        span: smallest and largest nearness of the colour map; None: those of this prediction.
    """
    if settings.is_of_classes:
        return class_picture(values, settings.palette)
    nearness = settings.nearness(values)
    low, high = span or (float(nearness.min()), float(nearness.max()))
    return colour(nearness, low, high, colour_map=settings.colour_map)


def side_by_side(image: NDArray[np.uint8], coloured: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns [h 2*w 3]: image [h w 3] on the left, `coloured` [h w 3] on the right; uint8 RGB."""
    return np.concatenate([image, coloured], axis=1)


def write_color(path: Path, image: NDArray | None, values: NDArray, settings: OutputSettings) -> None:
    """Writes `values` [h w] as an 8-bit PNG whose palette is the colour map, named in its text "colormap".

    Classes are written as their numbers, with their colours as palette and their names in the text "classes".

    A palette has the same colours as RGB, in half the bytes and a quarter of the time. The image is not used.
    """
    if settings.is_of_classes:
        numbers = Image.fromarray(values)  # [h w] uint8
        numbers.putpalette(settings.palette.tobytes())
        _save_png(path, numbers, {"classes": ", ".join(settings.quantity.class_names)})
        return
    nearness = settings.nearness(values)
    pixels = Image.fromarray(steps(nearness, float(nearness.min()), float(nearness.max())))
    pixels.putpalette(COLOUR_MAPS[settings.colour_map].tobytes())
    _save_png(path, pixels, _map_text(settings, values))


def write_side(path: Path, image: NDArray | None, values: NDArray, settings: OutputSettings) -> None:
    """Writes an 8-bit RGB PNG of twice the width: image [h w 3] uint8, and `values` [h w] in colours."""
    assert image is not None
    pixels = Image.fromarray(side_by_side(image, picture(values, settings)))
    _save_png(path, pixels, {} if settings.is_of_classes else _map_text(settings, values))


def write_overlay(path: Path, image: NDArray | None, values: NDArray, settings: OutputSettings) -> None:
    """Writes an 8-bit RGB PNG of image [h w 3] under the colours of the classes `values` [h w]."""
    assert image is not None
    _save_png(path, Image.fromarray(overlay(image, picture(values, settings))), {})


def write_png16(path: Path, image: NDArray | None, values: NDArray, settings: OutputSettings) -> None:
    """Writes `values` [h w] as a 16-bit gray PNG.

    Its texts "quantity", "unit", "scale", "offset" say what the numbers are. The image is not used.
    """
    quantity, scale, offset = settings.unit_16bit(values)
    stored = np.rint((values.astype(np.float64) - offset) / scale).clip(0, _LARGEST).astype(np.uint16)
    text = {"quantity": quantity, "scale": repr(scale), "offset": repr(offset)}
    if settings.quantity.is_metric:
        text["unit"] = f"{settings.unit_of_16bit}; {_LARGEST} is {settings.largest_16bit_m:g} m or more"
    _save_png(path, Image.fromarray(stored), text | {"formula": "value = offset + scale * stored"})


def write_npy(path: Path, image: NDArray | None, values: NDArray, settings: OutputSettings) -> None:
    """Writes `values` [h w] as predicted, float32, or uint8 class numbers; the image is not used."""
    with open(path, "wb") as file:  # np.save would add a suffix to a name
        np.save(file, values)


def write_exr(path: Path, image: NDArray | None, values: NDArray, settings: OutputSettings) -> None:
    """Writes `values` [h w] as a 32-bit float OpenEXR file: channel Z for metres, Y for disparity.

    The image is not used.
    """
    openexr = optional("OpenEXR", "save=exr")
    header = {"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage}
    channel = "Z" if settings.quantity.is_metric else "Y"
    openexr.File(header, {channel: np.ascontiguousarray(values)}).write(str(path))


def write_pfm(path: Path, image: NDArray | None, values: NDArray, settings: OutputSettings) -> None:
    """Writes `values` [h w] as a portable float map: 32-bit gray, little-endian, the last row first.

    The image is not used.
    """
    height, width = values.shape
    path.write_bytes(f"Pf\n{width} {height}\n-1.0\n".encode() + values[::-1].astype("<f4").tobytes())


def write_ply(path: Path, image: NDArray | None, values: NDArray, settings: OutputSettings) -> None:
    """Writes a binary PLY of points in metres (x right, y down, z forward) from `values` [h w].

    Their colours are those of image [h w 3] uint8 RGB.
    """
    points, colours = _points(image, values, settings)
    path.write_bytes(optional("trimesh", "save=ply").PointCloud(points, colours).export(file_type="ply"))


def write_glb(path: Path, image: NDArray | None, values: NDArray, settings: OutputSettings) -> None:
    """Writes a binary glTF of points in metres (x right, y up, z backward, its rule) from `values` [h w].

    Their colours are those of image [h w 3] uint8 RGB.
    """
    points, colours = _points(image, values, settings)
    cloud = optional("trimesh", "save=glb").PointCloud(points * np.array([1, -1, -1], np.float32), colours)
    path.write_bytes(cloud.scene().export(file_type="glb"))


Writer = Callable[..., None]  # (path, image [h w 3] or None, values [h w], settings)
FORMATS: dict[str, tuple[str, Writer]] = {  # format -> end of the file's name, and its writer
    "color": ("_color.png", write_color),
    "side": ("_side.png", write_side),
    "overlay": ("_overlay.png", write_overlay),
    "png16": ("_16bit.png", write_png16),
    "npy": (".npy", write_npy),
    "exr": (".exr", write_exr),
    "pfm": (".pfm", write_pfm),
    "ply": (".ply", write_ply),
    "glb": (".glb", write_glb),
}
CLOUDS = ("ply", "glb")
WITH_IMAGE = ("side", "overlay", *CLOUDS)
OF_CLASSES = ("color", "overlay", "side", "npy")  # formats of class numbers
_PACKAGES = {"exr": "OpenEXR", "ply": "trimesh", "glb": "trimesh"}


def check_formats(save: Sequence[str], settings: OutputSettings) -> None:
    """Checks the formats before anything is predicted.

    Raises:
        ValueError: a format is unknown, its package is missing, it is not for this quantity, or a point cloud
            lacks its range.
    """
    for name in save:
        if name in FORMATS and (name not in OF_CLASSES if settings.is_of_classes else name == "overlay"):
            formats = (
                OF_CLASSES if settings.is_of_classes else [each for each in FORMATS if each != "overlay"]
            )
            raise ValueError(
                f"save={name}: the model predicts {settings.quantity.describe()}; choose from "
                f"{', '.join(formats)}"
            )
        if name not in FORMATS:
            raise ValueError(f"unknown format save={name}; choose from {', '.join(FORMATS)}")
        if name in _PACKAGES:
            optional(_PACKAGES[name], f"save={name}")
        if name in CLOUDS and not settings.quantity.is_metric and settings.range_m is None:
            raise ValueError(
                f"save={name}: this model predicts disparity of unknown scale and shift, not metres: set the "
                "depth of its ends, such as near_m=1 far_m=20, or use a metric model"
            )


def write(targets: dict[str, Path], image: NDArray | None, values: NDArray, settings: OutputSettings) -> None:
    """Writes one prediction in each format of `targets`; each file appears whole or not at all.

    Args:
        image: [h w 3] uint8 RGB; may be None if no format of WITH_IMAGE is written.
        values: [h w] float32.

    Raises:
        ValueError: a file cannot be written.
    """
    for name, path in targets.items():
        fill = partial(FORMATS[name][1], image=image, values=values, settings=settings)
        write_atomically(path, fill)


def _map_text(settings: OutputSettings, values: NDArray[np.float32]) -> dict[str, str]:
    """Returns the texts of a picture: its colour map and, of metres, those of the first and last colour."""
    text = {"colormap": f"{settings.colour_map}, its last colour is near"}
    if settings.quantity.is_metric:
        text["range"] = f"{values.max():.3f} m to {values.min():.3f} m, from the first colour to the last"
    return text


def _save_png(path: Path, pixels: Image.Image, texts: dict[str, str]) -> None:
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    pixels.save(path, "PNG", pnginfo=info, compress_level=1)  # a fifth of level 6's time


def _points(image: NDArray | None, values: NDArray, settings: OutputSettings) -> tuple[NDArray, NDArray]:
    """Returns points [n 3] in metres and their colours [n 3] uint8."""
    assert image is not None
    depth_m = settings.depth_m(values)
    points = points_m(depth_m, settings.focal_px or focal_px_of(depth_m.shape[1], settings.fov_deg))
    known = np.isfinite(depth_m)
    return points[known], image[known]
