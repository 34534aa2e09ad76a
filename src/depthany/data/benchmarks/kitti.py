"""KITTI's Eigen test split with the annotated depth."""

from pathlib import Path

import numpy as np

from depthany.data.benchmarks.layout import BenchmarkDepth, first_file
from depthany.data.depth_files import read_depth
from depthany.data.labeled import Decoded
from depthany.data.pairs import Pair, read_list

EIGEN_LIST = "eigen_test_files_with_gt.txt"
# kitti.is.tue.mpg.de's archive has train/ and val/ on top; BTS and Marigold merge them into one folder.
_DEPTH_FOLDERS = (
    "data_depth_annotated/train",
    "data_depth_annotated/val",
    "data_depth_annotated",
    "train",
    "val",
    "gt",
    "",
)


class KittiEigen(BenchmarkDepth):
    """The 652 images of Eigen's test list that have annotated depth: uint16 PNG, 1/256 m, 0 = no return.

    Eigen et al. 2014 (arXiv 1406.2283) list 697 images of the raw recordings; 45 have no annotated depth
    (Uhrig et al. 2017, arXiv 1708.06500) and stand in the list with `None`. MiDaS's 161 images are another
    choice, whose list was never published; there is no reader for it.

    Args:
        root: holds the raw recordings (2011_09_26/...) and data_depth_annotated/.
        list_file: lines "image depth focal", as in BTS; None = `eigen_test_files_with_gt.txt` below root.

    Raises:
        ValueError: see `BenchmarkDepth`; or the list is missing or has other lines.
    """

    layout = (
        "2011_09_26/<drive>/image_02/data/*.png (KITTI raw, synced and rectified), "
        "data_depth_annotated/{train,val}/<drive>/proj_depth/groundtruth/image_02/*.png (KITTI depth, "
        f"annotated) and the list {EIGEN_LIST} of the BTS repository (train_test_inputs/)"
    )

    def __init__(self, root: str, list_file: str | None = None) -> None:
        self.list_file = Path(root) / EIGEN_LIST if list_file is None else Path(list_file)
        super().__init__(root)

    def official_pairs(self) -> list[Pair]:
        return [self._pair(image, depth) for image, depth in read_list(self.list_file) if depth != "None"]

    def _pair(self, image: str, depth: str) -> Pair:
        places = [self.root / folder / depth for folder in _DEPTH_FOLDERS]
        return Pair(str(Path(image).with_suffix("")), self.root / image, first_file(places))

    def decode(self, pair: Pair) -> Decoded:
        depth_m = read_depth(pair.depth) / np.float32(256)  # KITTI depth devkit: metres = value / 256
        return Decoded(depth_m, depth_m > 0)
