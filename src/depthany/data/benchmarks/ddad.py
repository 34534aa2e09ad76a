"""DDAD, validation, with the LiDAR already projected into the front camera."""

from pathlib import Path

import numpy as np

from depthany.data.benchmarks.benchmark import BenchmarkDepth, first_file
from depthany.data.depth_files import read_depth_16
from depthany.data.folders import walk
from depthany.data.labeled import Decoded
from depthany.data.pairs import Pair

_PNG_SCALE = 256.0  # stored value of one metre


class DdadProjected(BenchmarkDepth):
    """The front camera of DDAD, with LiDAR points that were projected to depth maps beforehand.

    Guizilini et al. 2020 (arXiv 1905.02693). Projecting needs TRI's own package (dgp), on which this one does
    not depend. Two files for each image, at any depth below root, named as in ZoeDepth's loader:

        NAME_rgb.png (or .jpg)    1216x1936
        NAME_depth.npy            float32 in metres, 0 = no return; or
        NAME_depth.png            uint16, 1/256 m as in KITTI, 0 = no return

    Raises:
        ValueError: see `BenchmarkDepth`.
    """

    layout = (
        "NAME_rgb.png or .jpg beside NAME_depth.npy (float32 metres) or NAME_depth.png (uint16, 1/256 m), "
        "0 = no return, in any subfolders: camera 1 of DDAD's validation scenes (github.com/TRI-ML/DDAD), "
        "LiDAR projected with TRI's dgp"
    )

    def official_pairs(self) -> list[Pair]:
        files = (Path(folder, name) for folder, _, names in walk(self.root) for name in names)
        return [self._pair(path) for path in sorted(files) if path.name.endswith(("_rgb.png", "_rgb.jpg"))]

    def _pair(self, image: Path) -> Pair:
        stem = image.stem.removesuffix("_rgb")
        places = [image.with_name(f"{stem}_depth.npy"), image.with_name(f"{stem}_depth.png")]
        return Pair((image.parent / stem).relative_to(self.root).as_posix(), image, first_file(places))

    def decode(self, pair: Pair) -> Decoded:
        depth_m = read_depth_16(pair.depth)
        if pair.depth.suffix == ".png":
            depth_m = depth_m / np.float32(_PNG_SCALE)
        return Decoded(depth_m, depth_m > 0)
