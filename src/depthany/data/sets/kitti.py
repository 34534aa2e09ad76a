"""KITTI with annotated depth (Uhrig et al. 2017, arXiv 1708.06500), for training."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from depthany.data.depth_files import read_depth
from depthany.data.labeled import Decoded
from depthany.data.layouts import LayoutDepth
from depthany.data.pairs import Pair, Pairs, missing, walk
from depthany.system.choices import require_choice

SPLITS = ("train", "val")
_DRIVE = r"(\d{4}_\d\d_\d\d)(_drive_\d+_sync)"


class KITTIAnnotated(LayoutDepth):
    """Raw `<date>/<drive>/image_02/data/N.png` with annotated
    `<split>/<drive>/proj_depth/groundtruth/image_02/N.png`: 16 bits, metres = v / 256, 0 = not measured.

    The first and last five frames of a drive have no annotation; such images are no error.

    Args:
        root: folder of the raw data, which holds the dates.
        depth_root: folder of the annotated depth, which holds `train` and `val`, relative to `root` or
            absolute; None = `data_depth_annotated`. Depth maps in a list are relative to it.
        split: `train`, `val`, or `all`, which takes any drive however deep below `depth_root`.
        cameras: 2 = left, 3 = right.
        common: see `PairedDepth`.
    """

    def __init__(
        self,
        root: str,
        depth_root: str | None = None,
        split: str = "train",
        cameras: Sequence[int] = (2, 3),
        **common: Any,
    ) -> None:
        require_choice("split of KITTI", split, (*SPLITS, "all"))
        self.depth_root = os.path.abspath(os.path.join(root, depth_root or "data_depth_annotated"))
        self.split, self.cameras = split, "|".join(f"image_0{number}" for number in cameras)
        super().__init__(root, **common)

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

    def locate(self, image: str, depth: str) -> tuple[str, str]:
        return image, os.path.join(self.depth_root, depth)

    def decode(self, pair: Pair) -> Decoded:
        stored = read_depth(pair.depth)
        return Decoded(stored / np.float32(256), stored > 0)
