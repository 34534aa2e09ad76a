"""BlendedMVS (Yao et al. 2020, arXiv 1911.10127)."""

from typing import Any

import numpy as np

from depthany.data.float_files import read_pfm
from depthany.data.labeled import Decoded
from depthany.data.layouts import ANYWHERE, Layout, LayoutDepth
from depthany.data.pairs import Pair


class BlendedMVS(LayoutDepth):
    """`<scene>/blended_images/%08d.jpg` with `<scene>/rendered_depth_maps/%08d.pfm`, at any depth below root.

    Depth is in units of the reconstruction of the scene, not in metres; 0 is invalid.

    Args:
        root: folder of the scenes.
        masked: read `%08d_masked.jpg`, whose background is black, instead of the whole image.
        common: see `PairedDepth`.
    """

    default_range_m = (1e-6, 1e6)  # the scale of a reconstruction is arbitrary
    scale_is_known = False

    def __init__(self, root: str, masked: bool = False, **common: Any) -> None:
        self.layout = Layout(
            image_folder=ANYWHERE + "blended_images",
            image_file=r"(\d+)_masked\.jpg" if masked else r"(\d+)\.jpg",
            depth_folder=ANYWHERE + "rendered_depth_maps",
            depth_file=r"(\d+)\.pfm",
            skip="cams",
        )
        super().__init__(root, **common)

    def decode(self, pair: Pair) -> Decoded:
        depth = read_pfm(pair.depth)
        return Decoded(depth, np.ones(depth.shape, bool))
