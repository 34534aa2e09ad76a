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
from depthany.system.files import write_shared

_PATH = r"(.*dense\d*)"
_ENOUGH = 32  # so many numbers of stereo depth are never all whole by chance


class MegaDepth(LayoutDepth):
    """`.../<scene>/dense*/imgs/NAME.jpg` with `.../dense*/depths/NAME.h5`, dataset `depth`.

    Two kinds of map have the same folder and key: Euclidean depth in units of the reconstruction of the
    scene, not in metres, and ordinal maps, whose small whole numbers only separate foreground from background
    (MegaDepth#1, #30, #38). Ordinal maps are left out and counted. To find them, every map is opened once;
    the result is kept in `kinds_file`. 0 is invalid.

    Args:
        root: folder of the scenes, at any depth, such as `phoenix/S6/zl548/MegaDepth_v1` or one above it.
        kinds_file: file that keeps the kind of each map; None = in the user's cache folder.
        common: see `PairedDepth`. A `list_file` must name Euclidean maps only.
    """

    default_range_m = (1e-6, 1e6)  # the scale of a reconstruction is arbitrary
    scale_is_known = False
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
        """Returns `euclidean` or `ordinal` for each map. Reads the maps that are not in the file, and adds
        them.

        A map that cannot be read is `unreadable`. It stays in the data set, so that reading it raises an
        error with its name.
        """
        kinds = _read_kinds(self.kinds_file)
        unknown = [depth for depth in depths if depth not in kinds]
        if len(unknown) > 1000:
            logging.getLogger(__name__).warning(
                "MegaDepth: opening %d depth maps once to find the ordinal ones; the result is kept in %s",
                len(unknown),
                self.kinds_file,
            )
        for depth in unknown:
            try:
                kinds[depth] = kind_of(self.root / depth)
            except ValueError:
                kinds[depth] = "unreadable"
        if unknown:
            lines = "".join(f"{kind}\t{depth}\n" for depth, kind in kinds.items() if kind != "unreadable")
            self.kinds_file.parent.mkdir(parents=True, exist_ok=True)
            write_shared(self.kinds_file, lines, replace=True)  # each rank of a run may write it
        return kinds


def kind_of(path: Path) -> str:
    """Returns `euclidean` or `ordinal`, by the middle row if it has enough numbers, else by the whole map.

    Raises:
        ValueError: the file cannot be read or has no dataset `depth` of two axes.
    """
    try:
        with h5py.File(path, "r") as file:
            depth = np.asarray(file["depth"][file["depth"].shape[0] // 2])
    except Exception:  # read_depth raises it again, with the name of the file
        depth = np.zeros(0)
    if np.count_nonzero(depth) < _ENOUGH and is_ordinal(depth):
        depth = read_depth(path, "depth")
    return "ordinal" if is_ordinal(depth) else "euclidean"


def is_ordinal(depth: np.ndarray) -> bool:
    """Returns whether all numbers are whole, as in an empty map; depth from stereo is not."""
    return bool((depth == np.rint(depth)).all())


def _cache_of(root: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base, "depthany", f"megadepth_{sha256(os.path.realpath(root).encode()).hexdigest()[:16]}.txt")


def _read_kinds(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    kinds = dict[str, str]()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        kind, _, depth = line.partition("\t")
        if kind not in ("euclidean", "ordinal") or not depth:
            raise ValueError(f"{path}, line {number}: not a list of MegaDepth's maps: delete the file")
        kinds[depth] = kind
    return kinds
