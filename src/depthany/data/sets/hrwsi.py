"""HR-WSI (Xian et al. 2020, Structure-Guided Ranking Loss): disparity of stereo photos from the web."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from depthany.data.depth_files import read_depth
from depthany.data.labeled import Decoded
from depthany.data.layouts import Layout, LayoutDepth
from depthany.data.pairs import Pair, missing
from depthany.data.samples import require_same_size
from depthany.system.choices import require_choice

SPLITS = ("train", "val")


class HRWSI(LayoutDepth):
    """`<split>/imgs/NAME.jpg` with `<split>/gts/NAME.png` and `<split>/valid_masks/NAME.png`.

    The 8-bit numbers are disparity of unknown scale and shift: baseline and focal length are not published
    (HR-WSI#15). A pixel is valid where the mask is 255. The data set does not mark sky.

    Args:
        root: folder that holds `train` and `val`.
        split: `train` (20,378 images) or `val` (400).
        common: see `PairedDepth`; `min_depth` and `max_depth` do not apply to disparity.
    """

    unit = "disparity"

    def __init__(self, root: str, split: str = "train", **common: Any) -> None:
        require_choice("split of HRWSI", split, SPLITS)
        self.layout = Layout(f"{split}/imgs", r"(.+)\.jpg", f"{split}/gts", r"(.+)\.png", "valid_masks")
        super().__init__(root, **common)

    def find(self) -> tuple[Sequence[Pair], list[str]]:
        rows, unpaired = self.layout.find(self.root)
        masks = dict(zip((_mask_of(depth) for _, depth in rows), rows))
        absent = set(missing(self.root, masks))
        return self.pairs_of(row for mask, row in masks.items() if mask not in absent), sorted(
            [*unpaired, *(f"{row[0]} (no valid mask)" for mask, row in masks.items() if mask in absent)]
        )

    def decode(self, pair: Pair) -> Decoded:
        disparity = read_depth(pair.depth)
        path = pair.depth.parent.parent / "valid_masks" / pair.depth.name
        mask = read_depth(path) == 255
        require_same_size(str(pair.depth), disparity.shape, str(path), mask.shape, "mask", "depth map")
        return Decoded(disparity / np.float32(255), mask)


def _mask_of(depth: str) -> str:
    return depth.replace("/gts/", "/valid_masks/")
