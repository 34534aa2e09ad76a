"""ETH3D, high-resolution multi-view training scenes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from depthany.data.benchmarks.benchmark import BenchmarkDepth, first_file, subfolder
from depthany.data.float_files import read_raw_float
from depthany.data.labeled import Decoded
from depthany.data.pairs import Pair
from depthany.data.samples import LabeledSample
from depthany.system.packages import reason


class Eth3d(BenchmarkDepth):
    """The 454 DSLR images of ETH3D's 13 training scenes, 4032x6048, with depth rendered from laser scans.

    Schöps et al. 2017. Depth files are raw little-endian float32 in metres, infinite if unknown, named like
    the images, .JPG included. They are registered to the original, *distorted* images; those of
    `dslr_images_undistorted` differ by many pixels and are not read.

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

    def official_pairs(self) -> list[Pair]:
        images = sorted(subfolder(self.root, "rgb").glob("*/images/dslr_images/*.JPG"))
        return [self._pair(image) for image in images]

    def _pair(self, image: Path) -> Pair:
        scene = image.parents[2].name
        inside = f"{scene}/ground_truth_depth/dslr_images/{image.name}"
        folders = ("", "depth", f"{scene}_dslr_depth", f"depth/{scene}_dslr_depth")
        depth = first_file([self.root / folder / inside for folder in folders])
        return Pair(f"{scene}/images/dslr_images/{image.stem}", image, depth)

    def decode(self, pair: Pair) -> Decoded:
        with _open(pair.image) as file:  # only the header; the depth file has none
            width, height = file.size
        depth_m = read_raw_float(pair.depth, height, width)
        return Decoded(depth_m, np.isfinite(depth_m) & (depth_m > 0))

    def read(self, index: int, convert_images: bool = False) -> LabeledSample:
        """Returns pair `index`. Raises ValueError, which names the file, if one is unusable.

        The image is not turned by its EXIF orientation, since depth is registered to the stored pixels.
        """
        pair, labels = self.pairs[index], self.labels(index)
        with _open(pair.image) as file:
            image = np.asarray(file.convert("RGB"))
        return LabeledSample(pair.name, image, labels)


@contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as file:
            yield file
    except Exception as error:  # a damaged file can raise almost anything in Pillow
        raise ValueError(f"{path}: cannot read the image: {reason(error)}") from None
