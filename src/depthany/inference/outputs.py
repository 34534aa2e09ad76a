"""The files that a prediction becomes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from depthany.display.pictures import COLOUR_MAPS, colour, steps
from depthany.inference.points import depth_between, focal_px_of, points_m
from depthany.system.files import write_atomically
from depthany.system.packages import optional

_LARGEST = 65535  # of 16 bits


@dataclass(frozen=True)
class Meaning:
    """What the numbers of a prediction mean, and how they are shown.

    Args:
        max_depth_m: largest depth of a metric model, whose values are metres; None: the values are disparity,
            larger is nearer, with a scale and shift of no meaning.
        colour_map: a name in `depthany.display.pictures.COLOUR_MAPS`.
        range_m: for point clouds. Of disparity: where its ends are put, nearest and farthest, in metres. Of a
            metric model: points outside are left out.
        focal_px: focal length in pixels; None: from `fov_deg`, the horizontal field of view.
    """

    max_depth_m: float | None
    colour_map: str = "spectral_r"
    range_m: tuple[float, float] | None = None
    focal_px: float | None = None
    fov_deg: float = 60.0

    def nearness(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The numbers to be coloured: larger is nearer."""
        return values if self.max_depth_m is None else -values

    def unit_16bit(self, values: NDArray[np.float32]) -> tuple[str, float, float]:
        """What 16 bits hold: quantity, scale and offset with value = offset + scale * stored.

        Metres in millimetres, or in 1/256 m (as in KITTI) where the model's largest depth is too large for
        those; a disparity from its smallest to its largest value.
        """
        if self.max_depth_m is None:
            low, high = float(values.min()), float(values.max())
            return "disparity, of unknown scale and shift", max(high - low, 1e-12) / _LARGEST, low
        return "depth in metres", 1 / 1000 if self.max_depth_m <= _LARGEST / 1000 else 1 / 256, 0.0

    def depth_m(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Depth [h w] in metres; NaN where it is to be left out."""
        if self.max_depth_m is None:
            assert self.range_m is not None, "checked before anything is predicted"
            return depth_between(values, *self.range_m)
        near, far = self.range_m or (0.0, np.inf)
        return np.where((values > 0) & (near <= values) & (values <= far), values, np.nan)


def picture(
    values: NDArray[np.float32], meaning: Meaning, span: tuple[float, float] | None = None
) -> NDArray:
    """[h w 3] uint8 RGB, from the map's first colour for the farthest to its last for the nearest.

    Args:
        values: [h w] a prediction.
        span: nearness of the map's two ends; None: those of this image.
    """
    nearness = meaning.nearness(values)
    low, high = span or (float(nearness.min()), float(nearness.max()))
    return colour(nearness, low, high, colour_map=meaning.colour_map)


def side_by_side(image: NDArray[np.uint8], shades: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image to the left of its picture of depth."""
    return np.concatenate([image, shades], axis=1)


def write_color(path: Path, image: NDArray | None, values: NDArray, meaning: Meaning) -> None:
    """8-bit PNG with the colour map as its palette, and the map's name as its text "colormap".

    The same colours as RGB would hold, in half the bytes and a quarter of the time.
    """
    nearness = meaning.nearness(values)
    pixels = Image.fromarray(steps(nearness, float(nearness.min()), float(nearness.max())))
    pixels.putpalette(COLOUR_MAPS[meaning.colour_map].tobytes())
    _save_png(path, pixels, _map_text(meaning))


def write_side(path: Path, image: NDArray | None, values: NDArray, meaning: Meaning) -> None:
    """8-bit RGB PNG of twice the width: image, picture of depth."""
    assert image is not None
    _save_png(path, Image.fromarray(side_by_side(image, picture(values, meaning))), _map_text(meaning))


def write_png16(path: Path, image: NDArray | None, values: NDArray, meaning: Meaning) -> None:
    """16-bit gray PNG; its texts "quantity", "scale" and "offset" say what the numbers are."""
    quantity, scale, offset = meaning.unit_16bit(values)
    stored = np.rint((values.astype(np.float64) - offset) / scale).clip(0, _LARGEST).astype(np.uint16)
    text = {"quantity": quantity, "scale": repr(scale), "offset": repr(offset)}
    _save_png(path, Image.fromarray(stored), text | {"formula": "value = offset + scale * stored"})


def write_npy(path: Path, image: NDArray | None, values: NDArray, meaning: Meaning) -> None:
    """float32 [h w] as predicted."""
    with open(path, "wb") as file:  # np.save would add a suffix to a name
        np.save(file, values)


def write_exr(path: Path, image: NDArray | None, values: NDArray, meaning: Meaning) -> None:
    """32-bit float OpenEXR: channel Z for depth in metres, Y for disparity."""
    openexr = optional("OpenEXR", "save=exr")
    header = {"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage}
    channel = "Y" if meaning.max_depth_m is None else "Z"
    openexr.File(header, {channel: np.ascontiguousarray(values)}).write(str(path))


def write_pfm(path: Path, image: NDArray | None, values: NDArray, meaning: Meaning) -> None:
    """32-bit float portable float map: gray, little-endian, the last row first."""
    height, width = values.shape
    path.write_bytes(f"Pf\n{width} {height}\n-1.0\n".encode() + values[::-1].astype("<f4").tobytes())


def write_ply(path: Path, image: NDArray | None, values: NDArray, meaning: Meaning) -> None:
    """Binary PLY of coloured points in metres: x right, y down, z forward."""
    points, colours = _points(image, values, meaning)
    path.write_bytes(optional("trimesh", "save=ply").PointCloud(points, colours).export(file_type="ply"))


def write_glb(path: Path, image: NDArray | None, values: NDArray, meaning: Meaning) -> None:
    """Binary glTF of coloured points in metres: x right, y up, z backward, as glTF asks."""
    points, colours = _points(image, values, meaning)
    cloud = optional("trimesh", "save=glb").PointCloud(points * np.array([1, -1, -1], np.float32), colours)
    path.write_bytes(cloud.scene().export(file_type="glb"))


Writer = Callable[..., None]  # (path, image, values, meaning)
FORMATS: dict[str, tuple[str, Writer]] = {  # how a file's name ends, and what writes it
    "color": ("_color.png", write_color),
    "side": ("_side.png", write_side),
    "png16": ("_16bit.png", write_png16),
    "npy": (".npy", write_npy),
    "exr": (".exr", write_exr),
    "pfm": (".pfm", write_pfm),
    "ply": (".ply", write_ply),
    "glb": (".glb", write_glb),
}
CLOUDS = ("ply", "glb")
WITH_IMAGE = ("side", *CLOUDS)
_PACKAGES = {"exr": "OpenEXR", "ply": "trimesh", "glb": "trimesh"}


def check_formats(save: Sequence[str], meaning: Meaning) -> None:
    """Find what the user can mend before anything is predicted.

    Raises:
        ValueError: a format is unknown, its package is missing, or a point cloud lacks its range.
    """
    for name in save:
        if name not in FORMATS:
            raise ValueError(f"unknown format save={name}; choose from {', '.join(FORMATS)}")
        if name in _PACKAGES:
            optional(_PACKAGES[name], f"save={name}")
        if name in CLOUDS and meaning.max_depth_m is None and meaning.range_m is None:
            raise ValueError(
                f"save={name}: this model gives disparity of unknown scale and shift, not metres; say "
                "where its ends are, such as near_m=1 far_m=20, or take a metric model"
            )


def write(targets: dict[str, Path], image: NDArray | None, values: NDArray, meaning: Meaning) -> None:
    """Write one prediction in each format of `targets`, each file whole or not at all.

    Args:
        image: [h w 3] uint8 RGB; None where no format of WITH_IMAGE is asked for.
        values: [h w] float32.

    Raises:
        ValueError: a file cannot be written.
    """
    for name, path in targets.items():
        fill = partial(FORMATS[name][1], image=image, values=values, meaning=meaning)
        write_atomically(path, fill)


def _map_text(meaning: Meaning) -> dict[str, str]:
    return {"colormap": f"{meaning.colour_map}, its last colour is near"}


def _save_png(path: Path, pixels: Image.Image, texts: dict[str, str]) -> None:
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    pixels.save(path, "PNG", pnginfo=info, compress_level=1)  # a fifth of level 6's time


def _points(image: NDArray | None, values: NDArray, meaning: Meaning) -> tuple[NDArray, NDArray]:
    """Points [n 3] in metres and their colours [n 3] uint8."""
    assert image is not None
    depth_m = meaning.depth_m(values)
    points = points_m(depth_m, meaning.focal_px or focal_px_of(depth_m.shape[1], meaning.fov_deg))
    known = np.isfinite(depth_m)
    return points[known], image[known]
