"""NYU Depth V2: the 654 labeled test images, from MATLAB files or from PNGs."""

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from depthany.data.benchmarks.layout import WIDE_RANGE_M, BenchmarkDepth, require_files, telling
from depthany.data.depth_files import read_depth
from depthany.data.labeled import Decoded
from depthany.data.pairs import Pair
from depthany.data.samples import LabeledSet
from depthany.data.sets.nyu import NYUv2Labeled
from depthany.system.packages import reason

MAT, SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"
_DEPTHS = {"raw": ("rawDepths", "depth"), "filled": ("depths", "filled")}  # in the .mat, in PNG names
_LAYOUT = (
    f"{MAT} and {SPLITS} (cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html), or "
    "test/<scene>/{rgb,depth,filled}_0001.png (Marigold's evaluation data)"
)


def nyu_eigen(root: str, depth: str = "raw") -> LabeledSet:
    """The 654 test images of NYU Depth V2, whichever of the two layouts is below `root`.

    Both readers give the same names (`kitchen_0004/rgb_0001`; the number counts the images of the .mat from
    1), so that scores of the same image can be compared.

    Args:
        depth: raw (the sensor's, with holes) or filled (in-painted by the authors).

    Raises:
        ValueError: the folder is missing or has neither layout, or files are missing or damaged.
    """
    if depth not in _DEPTHS:
        raise ValueError(f"unknown depth {depth!r} of NYUv2; choose from {', '.join(_DEPTHS)}")
    folder = Path(root)
    if (folder / MAT).is_file() or (folder / SPLITS).is_file():
        return NyuMat(root, depth)
    return NyuPng(root, depth)


class NyuPng(BenchmarkDepth):
    """NYUv2 test images as Marigold stores them: uint16 PNG in mm, 0 = none.

    Args:
        root: holds test/<scene>/{rgb,depth,filled}_0001.png.
        depth: raw or filled.

    Raises:
        ValueError: see `BenchmarkDepth`.
    """

    layout = _LAYOUT

    def __init__(self, root: str, depth: str = "raw") -> None:
        self.stem = _DEPTHS[depth][1]
        super().__init__(root)

    def official_pairs(self) -> list[Pair]:
        images = sorted(self.root.glob("test/*/rgb_*.png"))
        return [self._pair(image) for image in images]

    def _pair(self, image: Path) -> Pair:
        depth = image.with_name(image.name.replace("rgb", self.stem, 1))
        return Pair(f"{image.parent.name}/{image.stem}", image, depth)

    def decode(self, pair: Pair) -> Decoded:
        depth_m = read_depth(pair.depth) / np.float32(1000)
        return Decoded(depth_m, depth_m > 0)


class NyuMat(NYUv2Labeled):
    """NYUv2 test images from the authors' MATLAB files, named as in Marigold's PNG layout.

    Args:
        root: holds `nyu_depth_v2_labeled.mat` and `splits.mat`.
        depth: raw (rawDepths, 0 = hole) or filled (depths).

    Raises:
        ValueError: a file is missing, damaged, or has other contents.
    """

    def __init__(self, root: str, depth: str = "raw") -> None:
        low, high = WIDE_RANGE_M
        with telling(_LAYOUT):
            require_files(Path(root), [Path(root) / MAT, Path(root) / SPLITS])
            super().__init__(root, "test", _DEPTHS[depth][0], min_depth=low, max_depth=high)
        numbers = [int(pair.name) for pair in self.pairs]
        scenes = _scenes(Path(root) / MAT, numbers)
        self.names = [f"{scene}/rgb_{number:04d}" for scene, number in zip(scenes, numbers)]

    def name(self, index: int) -> str:
        """Scene and number of image `index`."""
        return self.names[index]


def _scenes(path: Path, numbers: Sequence[int]) -> list[str]:
    """Scene of each image; MATLAB stores a cell array of strings as references to character codes."""
    try:
        with h5py.File(path, "r") as file:
            references = file["scenes"][()].ravel()
            codes = [file[references[number - 1]][()].ravel() for number in numbers]
    except Exception as error:  # whatever a damaged file leads HDF5 to
        raise ValueError(f"{path}: cannot read scenes: {reason(error)}") from None
    return ["".join(map(chr, each)) for each in codes]
