"""ETH3D, high-resolution multi-view training scenes."""

from pathlib import Path

import numpy as np
from PIL import Image

from depthany.data.benchmarks.layout import BenchmarkDepth, first_file, subfolder
from depthany.data.depth_io import read_raw_float
from depthany.data.files import reason
from depthany.data.labeled import Decoded, Pair


class Eth3d(BenchmarkDepth):
    """The 454 DSLR images of ETH3D's 13 training scenes, 4032x6048, with depth rendered from laser scans.

    Schöps et al. 2017. Depth files are raw little-endian float32 in metres, infinite where there is none,
    and named like the images, .JPG included. They are registered to the original, *distorted* images: those
    of `dslr_images_undistorted` differ by many pixels and are not read.

    Args:
        root: holds <scene>/images and <scene>/ground_truth_depth, as ETH3D's archives unpack, or rgb/ and
            depth/ as in Marigold's archive.

    Raises:
        ValueError: see `BenchmarkDepth`.
    """

    layout = (
        "<scene>/images/dslr_images/*.JPG (multi_view_training_dslr_jpg.7z) and "
        "<scene>/ground_truth_depth/dslr_images/*.JPG (<scene>_dslr_depth.7z), of eth3d.net"
    )

    def expected(self) -> list[Pair]:
        images = sorted(subfolder(self.root, "rgb").glob("*/images/dslr_images/*.JPG"))
        return [self._pair(image) for image in images]

    def _pair(self, image: Path) -> Pair:
        scene = image.parents[2].name
        inside = f"{scene}/ground_truth_depth/dslr_images/{image.name}"
        folders = ("", "depth", f"{scene}_dslr_depth", f"depth/{scene}_dslr_depth")
        depth = first_file([self.root / folder / inside for folder in folders])
        return Pair(f"{scene}/{image.stem}", image, depth)

    def decode(self, pair: Pair) -> Decoded:
        try:
            with Image.open(pair.image) as file:  # the header only; the depth file has none
                width, height = file.size
        except Exception as error:  # whatever a damaged file leads Pillow to
            raise ValueError(f"{pair.image}: cannot read the image: {reason(error)}") from None
        depth_m = read_raw_float(pair.depth, height, width)
        return Decoded(depth_m, np.isfinite(depth_m) & (depth_m > 0))
