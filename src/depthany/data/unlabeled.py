"""Unlabeled sets: plain images."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from depthany.data.depth_io import IMAGE_SUFFIXES, list_files, read_image


class FolderImages:
    """Every image below `root`, however deep; raises a `ValueError` where there is none."""

    def __init__(self, root: str) -> None:
        self.paths = list(list_files(Path(root), IMAGE_SUFFIXES).values())

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int, convert_images: bool = False) -> NDArray[np.uint8]:
        """Image `index` as [h w 3] uint8 RGB; raises a `ValueError` that names an unusable file."""
        return read_image(self.paths[index], convert_images)
