"""The part of Virtual KITTI 2 that Marigold validates on."""

from depthany.data.benchmarks.layout import WIDE_RANGE_M, telling
from depthany.data.sets.vkitti2 import VirtualKITTI2

SCENE = "Scene01"
_LAYOUT = (
    "Scene01/<variant>/frames/{rgb,depth}/Camera_{0,1}/ (vkitti_2.0.3_rgb.tar and vkitti_2.0.3_depth.tar of "
    "Naver Labs Europe, unpacked into one folder)"
)
VARIANTS = ("clone", "morning", "overcast", "sunset", "15-deg-left", "15-deg-right")


class VirtualKITTI2Val(VirtualKITTI2):
    """Scene01 in six variants, both cameras: 5,364 images, as data_split/vkitti/vkitti_val.txt of Marigold.

    Args:
        root: folder of the scenes, with the archives of colour and depth unpacked into each other.

    Raises:
        ValueError: see `PairedDepth`.
    """

    def __init__(self, root: str) -> None:
        low, high = WIDE_RANGE_M
        with telling(_LAYOUT):
            super().__init__(root, cameras=(0, 1), variants=VARIANTS, min_depth=low, max_depth=high)

    def keep(self, rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
        here = [row for row in rows if SCENE in row[0].split("/")]
        self.count_left_out(f"of other scenes than {SCENE}", len(rows) - len(here))
        return super().keep(here)

    def expectation(self) -> str:
        others = ", ".join(f"{count} pairs {why}" for why, count in self.left_out.items())
        return f"nothing of {SCENE} is there" + (f" ({others})" if others else "")
