"""IRS (Wang et al. 2019, arXiv 1912.09678): rendered rooms, disparity of a stereo camera."""

import numpy as np

from depthany.data.depth_files import read_exr
from depthany.data.labeled import Decoded
from depthany.data.layouts import Layout, LayoutDepth
from depthany.data.pairs import Pair

BASELINE_M, FOCAL_PX = 0.1, 480.0  # "for most of the data" (IRS#2)


class IRS(LayoutDepth):
    """`.../l_N.png` with `.../d_N.exr` in one folder, at any depth (Store, Home, Office ...).

    The EXR holds disparity in pixels: depth = 0.1 m * 480 px / disparity. 0 is infinitely far, and invalid.
    Beyond 200 m the disparity is below a quarter of a pixel, and invalid as in CUT3R's preparation.
    """

    default_range_m = (1e-3, 200.0)
    layout = Layout(r"(.*)", r"l_(\d+)\.png", r"(.*)", r"d_(\d+)\.exr")

    def decode(self, pair: Pair) -> Decoded:
        disparity_px = read_exr(pair.depth)
        valid = disparity_px > 0  # excludes NaN too
        depth_m = np.float32(BASELINE_M * FOCAL_PX) / np.where(valid, disparity_px, np.float32(1))
        return Decoded(depth_m, valid)
