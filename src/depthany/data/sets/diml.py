"""DIML/CVL RGB-D (Cho et al. 2021, arXiv 2110.11590): Kinect indoors, stereo outdoors."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from depthany.data.depth_files import read_depth_16
from depthany.data.labeled import Decoded
from depthany.data.layouts import ANYWHERE, Layout, LayoutDepth
from depthany.data.pairs import Pair, Pairs
from depthany.system.choices import require_choice, require_list

# Names as in ZoeDepth's loaders of the two parts (data/diml_indoor_test.py, diml_outdoor_test.py).
LAYOUTS = {
    "indoor": Layout(
        ANYWHERE + "color", r"(.+?)(?:_c)?\.png", ANYWHERE + "depth_filled", r"(.+?)(?:_depth_filled)?\.png"
    ),
    "outdoor": Layout(
        ANYWHERE + "outleft", r"(.+)\.png", ANYWHERE + "depthmap", r"(.+)\.png", "outright|.*conf.*"
    ),
}
RANGES_M = {"indoor": (0.0, 10.0), "outdoor": (2.0, 80.0)}  # the caps of ZoeDepth


class DIML(LayoutDepth):
    """Indoor `.../color/NAME_c.png` with `depth_filled/NAME_depth_filled.png`, outdoor `.../outleft/NAME.png`
    with `depthmap/NAME.png`; 16-bit depth in millimetres, 0 = unknown.

    Valid depth is up to 10 m indoors, and 2 to 80 m outdoors. `min_depth` and `max_depth` narrow both ranges.

    Args:
        root: folder that holds one or both parts, at any depth.
        parts: `indoor`, `outdoor` or both.
        common: see `PairedDepth`.
    """

    def __init__(self, root: str, parts: Sequence[str] = ("indoor", "outdoor"), **common: Any) -> None:
        require_list("parts", parts)
        for part in parts:
            require_choice("part of DIML", part, tuple(LAYOUTS))
        self.parts = tuple(parts)
        super().__init__(root, **common)

    def find(self) -> tuple[Pairs, list[str]]:
        rows, unpaired = list[tuple[str, str]](), list[str]()
        for part in self.parts:
            found, alone = LAYOUTS[part].find(self.root)
            rows += found
            unpaired += alone
        return self.pairs_of(rows), unpaired

    def decode(self, pair: Pair) -> Decoded:
        depth_m = read_depth_16(pair.depth) / np.float32(1000)
        low, high = RANGES_M["outdoor" if pair.depth.parent.name == "depthmap" else "indoor"]
        return Decoded(depth_m, (depth_m >= low) & (depth_m <= high))
