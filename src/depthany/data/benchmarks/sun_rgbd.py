"""SUN RGB-D, test images."""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from depthany.data.benchmarks.benchmark import BenchmarkDepth, first_file
from depthany.data.depth_files import read_depth_16
from depthany.data.labeled import Decoded
from depthany.data.pairs import Pair
from depthany.system.choices import require_choice


def rotated_mm(stored: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns depth_m [h w] of `stored` [h w]: 16-bit millimetres, rotated to the left by 3 bits."""
    bits = stored.astype(np.uint32)
    return ((bits >> 3 | bits << 13) & 0xFFFF).astype(np.float32) / np.float32(1000)


def tenths_of_mm(stored: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns depth_m [h w] of `stored` [h w], in 1/10000 m."""
    return stored / np.float32(10000)


UNITS = {"rotated": rotated_mm, "tenths_of_mm": tenths_of_mm}  # name -> stored numbers to metres
_IMAGE = re.compile(r"img-(\d+)\.jpg")


class SunRgbd(BenchmarkDepth):
    """The test images of SUN RGB-D under their numbers, 1 to 5050, with 16-bit depth of the same number.

    Song et al. 2015 (CVPR). Images of four cameras and of several sizes. The images in this form are
    SUNRGBD-test_images.tgz of github.com/ankurhanda/sunrgbd-meta-data; their list sunrgbd_testing_images.txt
    says which depth map (folder depth_bfx, holes filled) belongs to which number.

    The files hold millimetres, rotated by 3 bits (read3dPoints.m of the official toolbox): `v >> 3 | v << 13`
    of 16 bits. Up to 8.191 m that is v / 8000 m. Depth Anything V1's loader takes v / 10000 m.

    Args:
        root: holds rgb/img-000001.jpg and depth/1.png (or depth/img-000001.png).
        unit: unit of the stored numbers: `rotated`, millimetres rotated by 3 bits; or `tenths_of_mm`,
            1/10000 m, as in V1's loader.

    Raises:
        ValueError: see `BenchmarkDepth`; or the unit is unknown.
    """

    layout = (
        "rgb/img-NNNNNN.jpg (SUNRGBD-test_images.tgz of github.com/ankurhanda/sunrgbd-meta-data) and "
        "depth/N.png, the depth_bfx map of line N of its sunrgbd_testing_images.txt"
    )

    def __init__(self, root: str, unit: str = "rotated") -> None:
        require_choice("unit of SUN RGB-D", unit, UNITS)
        self.to_metres = UNITS[unit]
        super().__init__(root)

    def official_pairs(self) -> list[Pair]:
        images = sorted(path for path in self.root.glob("rgb/*.jpg") if _IMAGE.fullmatch(path.name))
        return [Pair(image.stem, image, self._depth(image)) for image in images]

    def _depth(self, image: Path) -> Path:
        number, folder = int(image.stem.removeprefix("img-")), self.root / "depth"
        return first_file([folder / f"{number}.png", folder / f"{image.stem}.png"])

    def decode(self, pair: Pair) -> Decoded:
        stored = read_depth_16(pair.depth)
        return Decoded(self.to_metres(stored), stored > 0)
