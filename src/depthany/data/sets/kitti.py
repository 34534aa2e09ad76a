"""KITTI with annotated depth (Uhrig et al. 2017, arXiv 1708.06500), for training and for Eigen's test."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from depthany.data.depth_files import read_depth_16
from depthany.data.labeled import Decoded, PairedDepth
from depthany.data.pairs import Pair, Pairs, missing, require_unique, walk
from depthany.system.choices import require_choice

EIGEN_LIST = "eigen_test_files_with_gt.txt"
SPLITS = ("train", "val", "all", "eigen_test")
_DRIVE = r"(\d{4}_\d\d_\d\d)(_drive_\d+_sync)"
# Where the drives may lie below the folder of the annotated depth: the archive of the official site has
# train/ and val/ on top, BTS and Marigold merge them into one folder.
_PARTS = ("", "train", "val")
_DEPTH_FOLDERS = ("data_depth_annotated", "", "gt")  # below `root`, if `depth_root` is not given


class KITTI(PairedDepth):
    """Raw `<date>/<drive>/image_02/data/N.png` with annotated
    `<split>/<drive>/proj_depth/groundtruth/image_02/N.png`: 16 bits, metres = v / 256, 0 = not measured.

    The first and last five frames of a drive have no annotation, which is no error. A name is the path of the
    image without suffix.

    `eigen_test` are the 652 of Eigen's 697 test images (Eigen et al. 2014, arXiv 1406.2283) that have
    annotated depth; the list says `None` for the others. MiDaS's choice of 161 images was never published.

    Args:
        root: folder of the raw data, which holds the dates.
        depth_root: folder of the annotated depth, which holds `train` and `val`, relative to `root` or
            absolute. None = `data_depth_annotated`; depth maps of a list may also lie in `root` or its `gt`.
        split: `train`, `val`, `all` (any drive, however deep below `depth_root`) or `eigen_test`.
        cameras: 2 = left, 3 = right; not for lists.
        list_file: see `PairedDepth`. For `eigen_test` None = `eigen_test_files_with_gt.txt` in root.
        common: see `PairedDepth`.
    """

    def __init__(
        self,
        root: str,
        depth_root: str | None = None,
        split: str = "train",
        cameras: Sequence[int] = (2, 3),
        list_file: str | None = None,
        **common: Any,
    ) -> None:
        require_choice("split of KITTI", split, SPLITS)
        if split == "eigen_test" and list_file is None:
            list_file = os.path.join(root, EIGEN_LIST)
            if os.path.isdir(root) and not os.path.isfile(list_file):
                raise ValueError(
                    f"{list_file}: no such file: put the list of the BTS repository there "
                    "(github.com/cleinc/bts, train_test_inputs/), or pass list_file="
                )
        self.depth_root = os.path.abspath(os.path.join(root, depth_root or "data_depth_annotated"))
        folders = _DEPTH_FOLDERS if depth_root is None else (depth_root,)
        self._places = [os.path.abspath(os.path.join(root, top, part)) for top in folders for part in _PARTS]
        self._place_of = dict[str, str]()  # the place that has a folder of the list
        self.split, self.cameras = split, "|".join(f"image_0{number}" for number in cameras)
        super().__init__(root, list_file=list_file, **common)
        if split == "eigen_test":
            require_unique(pair.name for pair in self.pairs)

    def find(self) -> tuple[Pairs, list[str]]:
        if not os.path.isdir(self.depth_root):
            raise ValueError(
                f"{self.depth_root}: no such folder: pass depth_root=, which holds train and val"
            )
        below = "(?:.*/)?" if self.split == "all" else f"{self.split}/"
        pattern = re.compile(below + _DRIVE + rf"/proj_depth/groundtruth/({self.cameras})")
        rows = list[tuple[str, str]]()
        for folder, names in walk(Path(self.depth_root), skip="velodyne_raw"):
            if place := pattern.fullmatch(folder):
                date, drive, camera = place.groups()
                images = f"{date}/{date}{drive}/{camera}/data"
                rows += [
                    (f"{images}/{name}", f"{self.depth_root}/{folder}/{name}")
                    for name in names
                    if name.endswith(".png")
                ]
        absent = set(missing(self.root, (image for image, _ in rows)))
        whole = self.pairs_of(row for row in rows if row[0] not in absent)
        return whole, sorted(f"{depth} (no {image})" for image, depth in rows if image in absent)

    def pairs_of(self, rows: Iterable[tuple[str, str]]) -> Pairs:
        return Pairs(self.root, ((os.path.splitext(image)[0], image, depth) for image, depth in rows))

    def locate(self, image: str, depth: str) -> tuple[str, str]:
        folder = os.path.dirname(depth)
        if folder not in self._place_of:
            found = (place for place in self._places if os.path.isdir(os.path.join(place, folder)))
            self._place_of[folder] = next(found, self._places[0])
        return image, os.path.join(self._place_of[folder], depth)

    def decode(self, pair: Pair) -> Decoded:
        stored = read_depth_16(pair.depth)
        return Decoded(stored / np.float32(256), stored > 0)
