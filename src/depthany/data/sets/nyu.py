"""NYUv2 (Silberman et al. 2012): the 1449 labeled frames, and frames of the raw recordings, for training."""

import os
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from depthany.data.depth_files import read_depth, read_mat
from depthany.data.labeled import Decoded, PairedDepth
from depthany.data.layouts import Layout, LayoutDepth
from depthany.data.pairs import Pair, Pairs
from depthany.system.choices import require_choice
from depthany.system.packages import reason

FILE = "nyu_depth_v2_labeled.mat"
SPLITS = ("train", "test", "all")
DEPTHS = ("rawDepths", "depths")


class NYUv2Labeled(PairedDepth):
    """nyu_depth_v2_labeled.mat: 1449 images with depth in metres, in MATLAB's format 7.3, which is HDF5.

    HDF5 shows MATLAB's axes in reverse, images [n 3 w h] and depths [n w h]; they are turned. A name is the
    frame's number, which counts from 1 as in MATLAB.

    Args:
        root: folder of the file, and of splits.mat (MATLAB 5; needs SciPy) unless `split` is `all`.
        split: `train` (795 frames), `test` (654), `all`.
        depth: `rawDepths` of the sensor, 0 where it saw nothing, or `depths`, in-painted.
        min_depth, max_depth, sky_masks, expected: see `PairedDepth`. The names of sky masks are numbers too.
    """

    default_range_m = (1e-3, 10.0)

    def __init__(
        self,
        root: str,
        split: str = "train",
        depth: str = "rawDepths",
        min_depth: float | None = None,
        max_depth: float | None = None,
        sky_masks: str | None = None,
        expected: int | None = None,
    ) -> None:
        require_choice("split of NYUv2", split, SPLITS)
        require_choice("depth of NYUv2", depth, DEPTHS)
        self.split, self.depth_key = split, depth
        self._open: tuple[int, h5py.File] | None = None
        super().__init__(root, min_depth, max_depth, sky_masks=sky_masks, expected=expected)

    def find(self) -> tuple[Pairs, list[str]]:
        absent = [key for key in ("images", self.depth_key) if key not in self._file()]
        if absent:
            raise ValueError(f"{self.root / FILE}: expected the labeled set, which has {', '.join(absent)}")
        count = len(self._file()["images"])
        self._close()  # a loader process opens the file for itself
        numbers = list(range(1, count + 1))
        if self.split != "all":
            stored = read_mat(self.root / "splits.mat", f"{self.split}Ndxs")
            numbers = sorted(int(number) for number in stored.ravel())
        if numbers and not 1 <= numbers[0] <= numbers[-1] <= count:
            raise ValueError(
                f"{self.root / 'splits.mat'}: names frames {numbers[0]} to {numbers[-1]}, {FILE} has {count}"
            )
        return Pairs(self.root, ((f"{number:04d}", FILE, FILE) for number in numbers)), []

    def stored_image(self, index: int) -> NDArray[np.uint8]:
        return np.ascontiguousarray(self._frame("images", self.pairs[index], 3).transpose(2, 1, 0))

    def decode(self, pair: Pair) -> Decoded:
        depth_m = self._frame(self.depth_key, pair, 2).T.astype(np.float32)
        return Decoded(depth_m, depth_m > 0)

    def _frame(self, key: str, pair: Pair, axes: int) -> NDArray[Any]:
        try:
            stored = np.asarray(self._file()[key][int(pair.name) - 1])
        except (OSError, KeyError, IndexError) as error:
            raise ValueError(f"{pair.depth}, frame {pair.name}: cannot read {key}: {reason(error)}") from None
        if stored.ndim != axes:
            raise ValueError(f"{pair.depth}: expected {key} of {axes + 1} axes, got {stored.ndim + 1}")
        return stored

    def _file(self) -> h5py.File:
        """The open file of this process: HDF5's state does not survive a fork."""
        if self._open is None or self._open[0] != os.getpid():
            path = self.root / FILE
            try:
                self._open = (os.getpid(), h5py.File(path, "r"))
            except OSError as error:
                raise ValueError(f"{path}: cannot read the file: {reason(error)}") from None
        return self._open[1]

    def _close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}  # an open file cannot be sent to a spawned process


class NYUv2Raw(LayoutDepth):
    """Frames of the raw recordings, synchronised and projected onto the image by the official toolbox, as BTS
    gives them away: `<scene>/rgb_N.jpg` with `<scene>/sync_depth_N.png`, 16-bit millimetres, 0 = hole.

    Lists such as nyudepthv2_train_files_with_gt.txt of BTS begin a path with `/`; it is relative to `root`.
    """

    default_range_m = (1e-3, 10.0)
    layout = Layout(r"(.*)", r"rgb_(\d+)\.(?:jpg|png)", r"(.*)", r"sync_depth_(\d+)\.png")

    def locate(self, image: str, depth: str) -> tuple[str, str]:
        return image.lstrip("/"), depth.lstrip("/")

    def decode(self, pair: Pair) -> Decoded:
        depth_m = read_depth(pair.depth) / np.float32(1000)
        return Decoded(depth_m, depth_m > 0)
