"""MegaDepth v1 (Li and Snavely 2018, arXiv 1804.00607): photos with depth from stereo."""

import logging
import os
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from depthany.data.depth_files import read_depth
from depthany.data.labeled import Decoded
from depthany.data.layouts import Layout, LayoutDepth
from depthany.data.pairs import Pair
from depthany.system.files import write_atomically

_PATH = r"(.*dense\d*)"
_ENOUGH = 32  # numbers of stereo depth that are all whole by chance: there are none


class MegaDepth(LayoutDepth):
    """`.../<scene>/dense*/imgs/NAME.jpg` with `.../dense*/depths/NAME.h5`, dataset `depth`.

    Two kinds of map share folder and key: Euclidean depth in units of the scene's reconstruction, not metres,
    and ordinal maps, which hold small whole numbers that only tell foreground from background (MegaDepth#1,
    #30, #38). The latter are no depth: they are left out and counted. To tell them apart each map is opened
    once; the answers are kept in `kinds_file`. 0 is invalid.

    Args:
        root: folder of the scenes, however deep, such as `phoenix/S6/zl548/MegaDepth_v1` or one above it.
        kinds_file: where the kinds of the maps are kept; None = in the user's cache folder.
        common: see `PairedDepth`; a `list_file` is taken to name Euclidean maps only.
    """

    default_range_m = (1e-6, 1e6)  # the scale of a reconstruction is arbitrary
    layout = Layout(
        _PATH + "/imgs", r"(.+)\.(?i:jpe?g|png)", _PATH + "/depths", r"(.+)\.h5", skip="sparse|stereo|images"
    )

    def __init__(self, root: str, kinds_file: str | None = None, **common: Any) -> None:
        self.kinds_file = Path(kinds_file) if kinds_file else _cache_of(root)
        super().__init__(root, **common)

    def keep(self, rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
        kinds = self._kinds(depth for _, depth in rows)
        self.count_left_out(
            "with an ordinal or empty map", sum(kinds[depth] == "ordinal" for _, depth in rows)
        )
        return [row for row in rows if kinds[row[1]] != "ordinal"]

    def decode(self, pair: Pair) -> Decoded:
        depth = read_depth(pair.depth, "depth")
        if depth.any() and is_ordinal(depth):
            raise ValueError(f"{pair.depth}: an ordinal map, not depth: remove the pair from the list")
        return Decoded(depth, depth > 0)

    def _kinds(self, depths: Iterable[str]) -> dict[str, str]:
        """`euclidean` or `ordinal` for each map; what is not in the file is read and added to it.

        A map that cannot be read stays in the set as `unreadable`, so that who reads it is told by its name.
        """
        kinds = _read_kinds(self.kinds_file)
        unknown = [depth for depth in depths if depth not in kinds]
        if len(unknown) > 1000:
            logging.getLogger(__name__).warning(
                "MegaDepth: opening %d depth maps once to tell ordinal from Euclidean ones, kept in %s",
                len(unknown),
                self.kinds_file,
            )
        for depth in unknown:
            try:
                kinds[depth] = kind_of(self.root / depth)
            except ValueError:
                kinds[depth] = "unreadable"
        if unknown:
            told = ((kind, depth) for depth, kind in kinds.items() if kind != "unreadable")
            lines = "".join(f"{kind}\t{depth}\n" for kind, depth in told)
            self.kinds_file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.kinds_file, lambda partial: partial.write_text(lines))
        return kinds


def kind_of(path: Path) -> str:
    """`euclidean` or `ordinal`, by the middle row where that has enough numbers, else by the whole map.

    Raises:
        ValueError: the file cannot be read or has no dataset `depth` of two axes.
    """
    try:
        with h5py.File(path, "r") as file:
            depth = np.asarray(file["depth"][file["depth"].shape[0] // 2])
    except Exception:  # whatever it is: read_depth says it with the file's name
        depth = np.zeros(0)
    if np.count_nonzero(depth) < _ENOUGH and is_ordinal(depth):
        depth = read_depth(path, "depth")
    return "ordinal" if is_ordinal(depth) else "euclidean"


def is_ordinal(depth: np.ndarray) -> bool:
    """Whether all numbers are whole, as those of an empty map are; depth from stereo is not."""
    return bool((depth == np.rint(depth)).all())


def _cache_of(root: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base, "depthany", f"megadepth_{sha256(os.path.realpath(root).encode()).hexdigest()[:16]}.txt")


def _read_kinds(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    kinds = dict[str, str]()
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        kind, _, depth = line.partition("\t")
        if kind not in ("euclidean", "ordinal") or not depth:
            raise ValueError(f"{path}, line {number}: not a list of MegaDepth's maps: delete the file")
        kinds[depth] = kind
    return kinds
