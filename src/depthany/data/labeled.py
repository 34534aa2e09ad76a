"""Labeled sets: readers that turn a layout on disk into `DepthSample`s."""

from pathlib import Path

import numpy as np

from depthany.data.dataset import DepthSample, require_same_size
from depthany.data.depth_io import DEPTH_SUFFIXES, IMAGE_SUFFIXES, list_files, read_depth, read_image


class FolderDepth:
    """Image and depth files with equal stems in two folders below `root`.

    Args:
        root: folder that holds both.
        images, depth: names of the two folders.
        depth_scale: stored value of one metre (1000 for millimetres, 1 for metres).
        sky_value: stored value of sky, which is valid with disparity 0 (paper, section 3.1); None if there
            is none.
        min_depth, max_depth: metres; what lies outside is invalid, as are 0, negative numbers, NaN and
            infinity.
        h5_key: dataset inside `.h5` files.

    Raises:
        ValueError: a folder is missing or empty, or a file has no partner in the other folder.
    """

    def __init__(
        self,
        root: str,
        images: str = "images",
        depth: str = "depth",
        depth_scale: float = 1000.0,
        sky_value: float | None = None,
        min_depth: float = 1e-3,
        max_depth: float = 80.0,
        h5_key: str = "depth",
    ) -> None:
        if not 0 < min_depth < max_depth:
            raise ValueError(
                f"min_depth={min_depth} and max_depth={max_depth}: expected 0 < min_depth < max_depth"
            )
        if depth_scale <= 0:
            raise ValueError(f"depth_scale={depth_scale}: expected the stored value of one metre, above 0")
        self.depth_scale, self.sky_value, self.h5_key = depth_scale, sky_value, h5_key
        self.min_depth, self.max_depth = min_depth, max_depth
        image_paths = list_files(Path(root) / images, IMAGE_SUFFIXES)
        depth_paths = list_files(Path(root) / depth, DEPTH_SUFFIXES)
        lonely = sorted(image_paths.keys() ^ depth_paths.keys())
        if lonely:
            raise ValueError(
                f"{root}: {len(lonely)} file(s) without partner in {images}/ or {depth}/ ({len(image_paths)} "
                f"images, {len(depth_paths)} depth maps), the first: {', '.join(lonely[:10])}"
            )
        self.pairs = [(image_paths[stem], depth_paths[stem]) for stem in image_paths]

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int, convert_images: bool = False) -> DepthSample:
        """Read pair `index`; raises a `ValueError` that names the file where image or depth is unusable."""
        image_path, depth_path = self.pairs[index]
        image = read_image(image_path, convert_images)
        stored = read_depth(depth_path, self.h5_key)  # [h w]
        require_same_size(image_path, image.shape[:2], depth_path, stored.shape)
        sky = np.zeros_like(stored, dtype=bool) if self.sky_value is None else stored == self.sky_value
        depth_m = stored / self.depth_scale
        measured = (depth_m >= self.min_depth) & (depth_m <= self.max_depth) & ~sky  # False for NaN
        disparity = np.where(measured, 1.0 / np.where(measured, depth_m, 1.0), 0.0).astype(np.float32)
        if not measured.any():
            raise ValueError(
                f"{depth_path}: no valid pixel (between {self.min_depth} and {self.max_depth} m at "
                f"depth_scale={self.depth_scale:g}): remove the pair, or correct depth_scale or max_depth"
            )
        return DepthSample(image_path.name, image, disparity, measured | sky)
