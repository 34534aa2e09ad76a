"""NYUv2 (Silberman et al. 2012): the 1449 labeled frames, and frames of the raw recordings."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from depthany.data.depth_files import read_depth_16, read_mat
from depthany.data.labeled import Decoded, PairedDepth
from depthany.data.layouts import Layout, LayoutDepth
from depthany.data.pairs import Pair, Pairs
from depthany.system.choices import require_choice
from depthany.system.packages import reason

FILE, SPLIT_FILE = "nyu_depth_v2_labeled.mat", "splits.mat"
SPLITS = ("train", "test", "all")
DEPTHS = {"raw": ("rawDepths", "depth"), "filled": ("depths", "filled")}  # in the .mat, in names of PNGs


class NYUv2(PairedDepth):
    """`nyu_depth_v2_labeled.mat` and `splits.mat` (cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html), or only
    the test frames as `test/<scene>/{rgb,depth,filled}_NNNN.png` (Marigold's evaluation data).

    The .mat is of MATLAB's format 7.3, which is HDF5. HDF5 shows MATLAB's axes in reverse, images [n 3 w h]
    and depths [n w h]. The PNGs hold millimetres in 16 bits. Both have the same names, such as
    `kitchen_0004/rgb_0001`; the number counts the frames of the .mat from 1.

    Args:
        root: folder of the two .mat files, or of `test/`. `splits.mat` (MATLAB 5; needs SciPy) is not read if
            `split` is `all`.
        split: `train` (795 frames), `test` (654), `all`.
        depth: `raw`, as the sensor measured, with holes; or `filled`, in-painted by the authors.
        common: see `PairedDepth`; there are no lists.
    """

    default_range_m = (1e-3, 10.0)

    def __init__(self, root: str, split: str = "train", depth: str = "raw", **common: Any) -> None:
        require_choice("split of NYUv2", split, SPLITS)
        require_choice("depth of NYUv2", depth, DEPTHS)
        if common.get("list_file") is not None:
            raise ValueError(f"list_file={common['list_file']}: NYUv2 has no lists: choose a split")
        self.split, (self._mat_key, self._png_stem) = split, DEPTHS[depth]
        self._open: tuple[int, h5py.File] | None = None
        super().__init__(root, **common)

    def find(self) -> tuple[Pairs, list[str]]:
        try:
            return self._find()
        finally:
            self._close()  # each loader process opens the file for itself

    def _find(self) -> tuple[Pairs, list[str]]:
        if not (self.root / FILE).is_file() and self.split == "test":
            return self._find_pngs()
        absent = [key for key in ("images", self._mat_key) if key not in self._file()]
        if absent:
            raise ValueError(f"{self.root / FILE}: expected the labeled set, which has {', '.join(absent)}")
        count = len(self._file()["images"])
        numbers = self._numbers(count)
        if numbers and not 1 <= numbers[0] <= numbers[-1] <= count:
            raise ValueError(
                f"{self.root / SPLIT_FILE}: names frames {numbers[0]} to {numbers[-1]}, {FILE} has {count}"
            )
        names = [f"{scene}/rgb_{number:04d}" for scene, number in zip(self._scenes(numbers), numbers)]
        return Pairs(self.root, ((name, FILE, FILE) for name in names)), []

    def _find_pngs(self) -> tuple[Pairs, list[str]]:
        layout = Layout(r"test/(.+)", r"rgb_(\d+)\.png", r"test/(.+)", rf"{self._png_stem}_(\d+)\.png")
        rows, unpaired = layout.find(self.root)
        names = (image.removeprefix("test/").removesuffix(".png") for image, _ in rows)
        return Pairs(self.root, ((name, *row) for name, row in zip(names, rows))), unpaired

    def stored_image(self, index: int) -> bytes | NDArray[np.uint8]:
        pair = self.pairs[index]
        if pair.image.name != FILE:
            return super().stored_image(index)
        return np.ascontiguousarray(self._frame("images", pair, 3).transpose(2, 1, 0))

    def decode(self, pair: Pair) -> Decoded:
        if pair.depth.name == FILE:
            depth_m = self._frame(self._mat_key, pair, 2).T.astype(np.float32)
        else:
            depth_m = read_depth_16(pair.depth) / np.float32(1000)
        return Decoded(depth_m, depth_m > 0)

    def _numbers(self, count: int) -> list[int]:
        """Returns the numbers of the frames of the split, ascending; they count from 1."""
        if self.split == "all":
            return list(range(1, count + 1))
        path = self.root / SPLIT_FILE
        if not path.is_file():
            raise ValueError(f"{path}: no such file; {self.expectation()}")
        return sorted(int(number) for number in read_mat(path, f"{self.split}Ndxs").ravel())

    def _scenes(self, numbers: list[int]) -> list[str]:
        """Returns the scene of each frame. MATLAB stores strings as references to character codes."""
        with self._reading("scenes"):
            references = self._file()["scenes"][()].ravel()
            codes = [self._file()[references[number - 1]][()].ravel() for number in numbers]
            return ["".join(map(chr, letters)) for letters in codes]

    def _frame(self, key: str, pair: Pair, axes: int) -> NDArray[Any]:
        """Returns one frame of a variable, with the axes as HDF5 has them."""
        with self._reading(f"{key} of {pair.name}"):
            stored = np.asarray(self._file()[key][int(pair.name[-4:]) - 1])
        if stored.ndim != axes:
            raise ValueError(f"{pair.depth}: expected {key} of {axes + 1} axes, got {stored.ndim + 1}")
        return stored

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """Turns an error inside into a ValueError that names the file."""
        try:
            yield
        except Exception as error:  # a damaged file can raise almost anything in HDF5
            raise ValueError(f"{self.root / FILE}: cannot read {what}: {reason(error)}") from None

    def _file(self) -> h5py.File:
        """Returns the file, opened by this process: HDF5's state does not survive a fork."""
        if self._open is None or self._open[0] != os.getpid():
            path = self.root / FILE
            if not path.is_file():
                raise ValueError(f"{path}: no such file; {self.expectation()}")
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
    """`<scene>/rgb_N.jpg` with `<scene>/sync_depth_N.png`: frames of the raw recordings, synchronised and
    projected onto the image by the official toolbox, as BTS publishes them; 16-bit millimetres, 0 = hole.

    Lists such as nyudepthv2_train_files_with_gt.txt of BTS begin a path with `/`; it is relative to `root`.
    """

    default_range_m = (1e-3, 10.0)
    layout = Layout(r"(.*)", r"rgb_(\d+)\.(?:jpg|png)", r"(.*)", r"sync_depth_(\d+)\.png")

    def locate(self, image: str, depth: str) -> tuple[str, str]:
        return image.lstrip("/"), depth.lstrip("/")

    def decode(self, pair: Pair) -> Decoded:
        depth_m = read_depth_16(pair.depth) / np.float32(1000)
        return Decoded(depth_m, depth_m > 0)
