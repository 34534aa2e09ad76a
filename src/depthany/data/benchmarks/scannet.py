"""ScanNet, as Marigold evaluates it."""

from pathlib import Path

import numpy as np

from depthany.data.benchmarks.layout import BenchmarkDepth, read_list
from depthany.data.depth_io import read_depth
from depthany.data.labeled import Decoded, Pair


class ScannetMarigold(BenchmarkDepth):
    """The 800 validation frames of ScanNet that Marigold drew: uint16 PNG in mm, 0 = none.

    Dai et al. 2017 (arXiv 1702.04405); Ke et al. 2024 (arXiv 2312.02145). Colour must have been resized to
    the depth's 480x640, as it is in Marigold's archive; ScanNet's own export has it at 968x1296.

    Args:
        root: holds <scene>/color/*.jpg and <scene>/depth/*.png.
        file_list: lines "image depth" below root (Marigold's scannet_val_sampled_list_800_1.txt); None =
            every image below root, which is the same in Marigold's archive.

    Raises:
        ValueError: see `BenchmarkDepth`; or the list cannot be read.
    """

    layout = (
        "<scene>/color/*.jpg and <scene>/depth/*.png of one size (the archive scannet_val_sampled_800_1 of "
        "Marigold's evaluation data, after ScanNet's terms of use are signed)"
    )

    def __init__(self, root: str, file_list: str | None = None) -> None:
        self.file_list = None if file_list is None else Path(file_list)
        super().__init__(root)

    def expected(self) -> list[Pair]:
        if self.file_list is not None:
            rows = read_list(self.file_list, "image.jpg depth.png")
            pairs = [(self.root / image, self.root / depth) for image, depth, *_ in rows]
        else:
            images = sorted(self.root.glob("*/color/*.jpg"))
            pairs = [(path, path.parents[1] / "depth" / f"{path.stem}.png") for path in images]
        return [Pair(f"{image.parents[1].name}/{image.stem}", image, depth) for image, depth in pairs]

    def decode(self, pair: Pair) -> Decoded:
        depth_m = read_depth(pair.depth) / np.float32(1000)
        return Decoded(depth_m, depth_m > 0)
