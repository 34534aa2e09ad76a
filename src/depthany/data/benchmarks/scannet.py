"""ScanNet, as Marigold evaluates it."""

from pathlib import Path

import numpy as np

from depthany.data.benchmarks.benchmark import BenchmarkDepth
from depthany.data.depth_files import read_depth_16
from depthany.data.labeled import Decoded
from depthany.data.pairs import Pair, read_list


class ScannetMarigold(BenchmarkDepth):
    """The 800 validation frames of ScanNet that Marigold drew: uint16 PNG in mm, 0 = none.

    Dai et al. 2017 (arXiv 1702.04405); Ke et al. 2024 (arXiv 2312.02145). Images must have the 480x640 pixels
    of the depth, as in Marigold's archive; ScanNet's own export has 968x1296.

    Args:
        root: holds <scene>/color/*.jpg and <scene>/depth/*.png.
        list_file: lines "image depth" below root (Marigold's scannet_val_sampled_list_800_1.txt). None =
            every image below root, which is the same for Marigold's archive.

    Raises:
        ValueError: see `BenchmarkDepth`; or the list cannot be read.
    """

    layout = (
        "<scene>/color/*.jpg and <scene>/depth/*.png of one size (the archive scannet_val_sampled_800_1 of "
        "Marigold's evaluation data, after ScanNet's terms of use are signed)"
    )

    def __init__(self, root: str, list_file: str | None = None) -> None:
        self.list_file = None if list_file is None else Path(list_file)
        super().__init__(root)

    def official_pairs(self) -> list[Pair]:
        if self.list_file is not None:
            pairs = [(self.root / image, self.root / depth) for image, depth in read_list(self.list_file)]
        else:
            images = sorted(self.root.glob("*/color/*.jpg"))
            pairs = [(path, path.parents[1] / "depth" / f"{path.stem}.png") for path in images]
        return [
            Pair("/".join((*image.parts[-3:-1], image.stem)), image, depth)  # scene, color, frame
            for image, depth in pairs
        ]

    def decode(self, pair: Pair) -> Decoded:
        depth_m = read_depth_16(pair.depth) / np.float32(1000)
        return Decoded(depth_m, depth_m > 0)
