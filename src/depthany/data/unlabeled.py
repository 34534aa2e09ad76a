"""Unlabeled sets: plain images."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from depthany.data.files import list_files
from depthany.data.images import IMAGE_SUFFIXES, decode_image, read_bytes


class FolderImages:
    """Every image below `root`, however deep; raises a `ValueError` where there is none."""

    def __init__(self, root: str) -> None:
        self.paths = list(list_files(Path(root), IMAGE_SUFFIXES).values())

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """Path of image `index`."""
        return str(self.paths[index])

    def stored_image(self, index: int) -> bytes:
        """Image file `index` as it is on disk."""
        return read_bytes(self.paths[index])

    def read(self, index: int, convert_images: bool = False) -> NDArray[np.uint8]:
        """Image `index` as [h w 3] uint8 RGB; raises a `ValueError` that names an unusable file."""
        return decode_image(self.stored_image(index), self.name(index), convert_images)
