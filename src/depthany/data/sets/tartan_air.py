"""TartanAir (Wang et al. 2020, arXiv 2003.14338)."""

from collections.abc import Sequence
from typing import Any

from depthany.data.depth_files import read_depth
from depthany.data.labeled import Decoded
from depthany.data.layouts import ANYWHERE, Layout, LayoutDepth
from depthany.data.pairs import Pair
from depthany.system.choices import require_list


class TartanAir(LayoutDepth):
    """`<env>/<env>/{Easy,Hard}/Pxxx/image_left/N_left.png` with `.../depth_left/N_left_depth.npy`; metres.

    Args:
        root: folder of the environments, at any depth.
        exclude: environments to leave out, by the name of a folder in the path, such as `amusement`.
        sky_beyond_m: a pixel at this depth or beyond is sky; None = no sky. Sky is stored as 10000 and more.
            The paper does not say how it treats sky (V2#144 is users' advice).
        common: see `PairedDepth`.
    """

    default_range_m = (1e-3, 10000.0)
    layout = Layout(
        ANYWHERE + "image_left",
        r"(\d+)_left\.png",
        ANYWHERE + "depth_left",
        r"(\d+)_left_depth\.npy",
        skip="image_right|depth_right|seg_left|seg_right|flow",
    )

    def __init__(
        self, root: str, exclude: Sequence[str] = (), sky_beyond_m: float | None = 10000.0, **common: Any
    ) -> None:
        require_list("exclude", exclude)
        self.exclude, self.sky_beyond_m = frozenset(exclude), sky_beyond_m
        super().__init__(root, **common)

    def keep(self, rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
        folders = {part for image, _ in rows for part in image.split("/")[:-1]}
        if rows and (absent := sorted(self.exclude - folders)):
            raise ValueError(
                f"exclude={absent} names no folder above an image below {self.root}, such as {rows[0][0]}"
            )
        kept = [row for row in rows if self.exclude.isdisjoint(row[0].split("/"))]
        self.count_left_out(f"in {', '.join(sorted(self.exclude))}", len(rows) - len(kept))
        return kept

    keep_listed = keep

    def decode(self, pair: Pair) -> Decoded:
        depth_m = read_depth(pair.depth)
        sky = None if self.sky_beyond_m is None else depth_m >= self.sky_beyond_m
        return Decoded(depth_m, depth_m > 0, sky)
