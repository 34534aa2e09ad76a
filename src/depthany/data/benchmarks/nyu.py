"""NYU Depth V2: the 654 labeled test images, from MATLAB files or from PNGs."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from depthany.data.benchmarks.layout import WIDE_RANGE_M, BenchmarkDepth, require_files
from depthany.data.dataset import DepthSample, LabeledSet, Labels
from depthany.data.depth_io import read_depth, read_mat
from depthany.data.files import reason
from depthany.data.labeled import Decoded, Pair

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
        ValueError: neither layout is there, or files are missing or damaged.
    """
    if depth not in _DEPTHS:
        raise ValueError(f"unknown depth {depth!r} of NYUv2; choose from {', '.join(_DEPTHS)}")
    folder = Path(root)
    if (folder / MAT).is_file() or (folder / SPLITS).is_file():
        return NyuMat(root, depth)
    if not (folder / "test").is_dir():
        raise ValueError(f"{root}: neither {MAT} nor test/ is there; expected {_LAYOUT}")
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

    def expected(self) -> list[Pair]:
        images = sorted(self.root.glob("test/*/rgb_*.png"))
        return [self._pair(image) for image in images]

    def _pair(self, image: Path) -> Pair:
        depth = image.with_name(image.name.replace("rgb", self.stem, 1))
        return Pair(f"{image.parent.name}/{image.stem}", image, depth)

    def decode(self, pair: Pair) -> Decoded:
        depth_m = read_depth(pair.depth) / np.float32(1000)
        return Decoded(depth_m, depth_m > 0)


class NyuMat:
    """NYUv2 test images from the authors' MATLAB files, a `LabeledSet`.

    `nyu_depth_v2_labeled.mat` is version 7.3, which is HDF5 with the axes reversed: images (1449, 3, 640,
    480), depths and rawDepths (1449, 640, 480) in metres. `splits.mat` is version 5 and counts from 1.

    Args:
        root: holds both files.
        depth: raw (rawDepths, 0 = hole) or filled (depths).

    Raises:
        ValueError: a file is missing, damaged, or has other contents.
    """

    def __init__(self, root: str, depth: str = "raw") -> None:
        self.min_depth, self.max_depth = WIDE_RANGE_M
        self.path, self.key = Path(root) / MAT, _DEPTHS[depth][0]
        splits = Path(root) / SPLITS
        try:
            require_files(Path(root), [self.path, splits])
        except ValueError as error:
            raise ValueError(f"{error}; expected {_LAYOUT}") from None
        self.numbers: list[int] = read_mat(splits, "testNdxs").astype(int).ravel().tolist()
        count = len(self._stored("images"))
        if not self.numbers or min(self.numbers) < 1 or max(self.numbers) > count:
            raise ValueError(f"{splits}: expected numbers from 1 to {count}, the images of {MAT}")
        self.names = [f"{scene}/rgb_{number:04d}" for scene, number in zip(self._scenes(), self.numbers)]

    def __len__(self) -> int:
        return len(self.numbers)

    def name(self, index: int) -> str:
        """Scene and number of image `index`, as in Marigold's PNG layout."""
        return self.names[index]

    def stored_image(self, index: int) -> NDArray[np.uint8]:
        """Image `index`, [480 640 3] uint8 RGB."""
        return np.ascontiguousarray(self._stored("images", index).transpose(2, 1, 0))

    def labels(self, index: int) -> Labels:
        """Disparity and mask of image `index`; raises a `ValueError` where no pixel is valid."""
        depth_m = self._stored(self.key, index).T.astype(np.float32)
        mask = np.isfinite(depth_m) & (depth_m > 0)
        if not mask.any():
            raise ValueError(f"{self.path}: no valid pixel in {self.key} of image {self.numbers[index]}")
        disparity = np.where(mask, 1.0 / np.where(mask, depth_m, 1.0), 0.0).astype(np.float32)
        return Labels(disparity, mask)

    def read(self, index: int, convert_images: bool = False) -> DepthSample:
        """Image and labels `index`; there is nothing to convert."""
        labels = self.labels(index)
        return DepthSample(self.name(index), self.stored_image(index), labels.disparity, labels.mask)

    def _stored(self, key: str, index: int | None = None) -> Any:
        """Item `index` of an HDF5 dataset, or a range as long as the dataset.

        The file is opened anew each time: an open one cannot be handed to loader processes.
        """
        try:
            with h5py.File(self.path, "r") as file:
                stored = file[key]
                return range(len(stored)) if index is None else stored[self.numbers[index] - 1]
        except Exception as error:  # whatever a damaged file leads HDF5 to
            raise ValueError(f"{self.path}: cannot read {key}: {reason(error)}") from None

    def _scenes(self) -> list[str]:
        """Scene of each test image; a cell array of strings is stored as references to character codes."""
        try:
            with h5py.File(self.path, "r") as file:
                references = file["scenes"][()].ravel()
                codes = [file[references[number - 1]][()].ravel() for number in self.numbers]
        except Exception as error:
            raise ValueError(f"{self.path}: cannot read scenes: {reason(error)}") from None
        return ["".join(map(chr, each)) for each in codes]
