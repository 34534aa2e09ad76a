"""iBims-1."""

from pathlib import Path

import numpy as np

from depthany.data.benchmarks.benchmark import BenchmarkDepth, subfolder
from depthany.data.depth_files import read_depth, read_depth_16
from depthany.data.labeled import Decoded
from depthany.data.pairs import Pair
from depthany.data.samples import require_same_size

_MASKS = ("mask_invalid", "mask_transp")


class Ibims(BenchmarkDepth):
    """The 100 images of iBims-1, 480x640, with laser scans: uint16 PNG, 50/65535 m, 0 = none.

    Koch et al. 2018 (arXiv 1805.01328). A pixel is valid where both masks are set. `mask_invalid` is 0 on
    missing depth, `mask_transp` on glass and the like, through which the laser goes.

    Args:
        root: folder that holds ibims1_core_raw/, or that folder itself.

    Raises:
        ValueError: see `BenchmarkDepth`.
    """

    layout = (
        "ibims1_core_raw/{rgb,depth,mask_invalid,mask_transp}/NAME.png (ibims1_core_raw.zip of the Technical "
        "University of Munich)"
    )

    def official_pairs(self) -> list[Pair]:
        core = subfolder(self.root, "ibims1_core_raw")
        return [
            Pair(image.stem, image, core / "depth" / image.name) for image in sorted(core.glob("rgb/*.png"))
        ]

    def needed(self, pair: Pair) -> list[Path]:
        return [pair.image, pair.depth, *_masks(pair)]

    def decode(self, pair: Pair) -> Decoded:
        depth_m = read_depth_16(pair.depth) * np.float32(50 / 65535)
        valid = depth_m > 0
        for path in _masks(pair):
            mask = read_depth(path) > 0
            require_same_size(str(pair.depth), depth_m.shape, str(path), mask.shape, "mask", "depth map")
            valid &= mask
        return Decoded(depth_m, valid)


def _masks(pair: Pair) -> list[Path]:
    return [pair.depth.parents[1] / folder / pair.depth.name for folder in _MASKS]
