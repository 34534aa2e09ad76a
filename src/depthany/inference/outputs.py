"""The files that a prediction is written to."""

import struct
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from depthany.display.captions import legend_steps
from depthany.display.class_pictures import class_picture, overlay
from depthany.display.pictures import COLOUR_MAPS, colour, steps
from depthany.inference.output_settings import LARGEST_16BIT, OutputSettings
from depthany.inference.points import focal_px_of, points_m
from depthany.system.files import write_atomically
from depthany.system.packages import optional


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


def legend_of(
    values: NDArray[np.float32], settings: OutputSettings, span: tuple[float, float] | None = None
) -> NDArray[np.uint8] | None:
    """Returns the legend of a picture of `values` [h w] as steps of its colour map [rows w], None without.

    Args:
        span: as in `picture`.
    """
    if not settings.legend or settings.is_of_classes:
        return None
    far, near = "far", "near (no unit)"
    if settings.quantity.is_metric:
        farthest, nearest = (-span[0], -span[1]) if span else (values.max(), values.min())
        far, near = f"far {farthest:.2f} m", f"near {nearest:.2f} m"
    return legend_steps(values.shape, far, near, COLOUR_MAPS[settings.colour_map])


def with_legend(
    pixels: NDArray[np.uint8], legend: NDArray[np.uint8] | None, settings: OutputSettings
) -> NDArray[np.uint8]:
    """Returns a picture with its legend below its right side; white beside it.

    Args:
        pixels: [h w 3] uint8 RGB.
        legend: [rows w'] uint8 steps of the colour map, from `legend_of`, at most as wide; None = none.
    """
    if legend is None:
        return pixels
    below = np.full((len(legend), *pixels.shape[1:]), 255, np.uint8)
    below[:, -legend.shape[1] :] = COLOUR_MAPS[settings.colour_map][legend]
    return np.concatenate([pixels, below])


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
    shown, legend = steps(nearness, float(nearness.min()), float(nearness.max())), legend_of(values, settings)
    pixels = Image.fromarray(shown if legend is None else np.concatenate([shown, legend]))
    pixels.putpalette(COLOUR_MAPS[settings.colour_map].tobytes())
    _save_png(path, pixels, _map_text(settings, values) | _rows_of(legend))


def write_side(path: Path, image: NDArray | None, values: NDArray, settings: OutputSettings) -> None:
    """Writes an 8-bit RGB PNG of twice the width: image [h w 3] uint8, and `values` [h w] in colours, both
    above the legend.
    """
    assert image is not None
    pixels, legend = side_by_side(image, picture(values, settings)), legend_of(values, settings)
    texts = {} if settings.is_of_classes else _map_text(settings, values) | _rows_of(legend)
    _save_png(path, Image.fromarray(with_legend(pixels, legend, settings)), texts)


def write_overlay(path: Path, image: NDArray | None, values: NDArray, settings: OutputSettings) -> None:
    """Writes an 8-bit RGB PNG of image [h w 3] under the colours of the classes `values` [h w]."""
    assert image is not None
    _save_png(path, Image.fromarray(overlay(image, picture(values, settings))), {})


def write_png16(path: Path, image: NDArray | None, values: NDArray, settings: OutputSettings) -> None:
    """Writes `values` [h w] as a 16-bit gray PNG.

    Its texts "quantity", "unit", "scale", "offset" say what the numbers are. The image is not used.
    """
    quantity, scale, offset = settings.unit_16bit(values)
    stored = np.rint((values.astype(np.float64) - offset) / scale).clip(0, LARGEST_16BIT).astype(np.uint16)
    text = {"quantity": quantity, "scale": repr(scale), "offset": repr(offset)}
    if settings.quantity.is_metric:
        text["unit"] = f"{settings.unit_of_16bit}; {LARGEST_16BIT} is {settings.largest_16bit_m:g} m or more"
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
    """Writes a binary PLY of points in metres (x right, y up, z backward) from `values` [h w].

    So viewers such as MeshLab and CloudCompare show it upright, and from the camera.

    Their colours are those of image [h w 3] uint8 RGB.
    """
    points, colours = _cloud(image, values, settings)
    path.write_bytes(optional("trimesh", "save=ply").PointCloud(points, colours).export(file_type="ply"))


def write_glb(path: Path, image: NDArray | None, values: NDArray, settings: OutputSettings) -> None:
    """Writes a binary glTF of points in metres (x right, y up, z backward, its rule) from `values` [h w].

    Their colours are those of image [h w 3] uint8 RGB.
    """
    points, colours = _cloud(image, values, settings)
    cloud = optional("trimesh", "save=glb").PointCloud(points, colours)
    path.write_bytes(cloud.scene().export(file_type="glb") if len(points) else _empty_glb())


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


def _rows_of(legend: NDArray | None) -> dict[str, str]:
    """Returns the text of a picture that says which of its rows are the legend."""
    return {} if legend is None else {"legend": f"the last {len(legend)} rows; save without by legend=false"}


def _save_png(path: Path, pixels: Image.Image, texts: dict[str, str]) -> None:
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    pixels.save(path, "PNG", pnginfo=info, compress_level=1)  # a fifth of level 6's time


def _empty_glb() -> bytes:
    """Returns a binary glTF of nothing, which trimesh refuses to write."""
    content = b'{"asset":{"version":"2.0"}}'
    content += b" " * (-len(content) % 4)
    header = struct.pack("<4sII", b"glTF", 2, 20 + len(content))
    return header + struct.pack("<I4s", len(content), b"JSON") + content


def upright_points(values: NDArray, settings: OutputSettings) -> NDArray[np.float32]:
    """Returns points [h w 3] in metres, x right, y up and z backward; NaN where the depth is unknown.

    Args:
        values: [h w] as predicted.
        settings: range and field of view.
    """
    depth_m = settings.depth_m(values)
    points = points_m(depth_m, settings.focal_px or focal_px_of(depth_m.shape[1], settings.fov_deg))
    return points * np.array([1, -1, -1], np.float32)


def _cloud(image: NDArray | None, values: NDArray, settings: OutputSettings) -> tuple[NDArray, NDArray]:
    """Returns the known points [n 3] of `upright_points` and their colours [n 3] uint8."""
    assert image is not None
    points = upright_points(values, settings)
    known = np.isfinite(points[..., 2])
    return points[known], image[known]
