"""What the benchmark readers share: the files are known beforehand, and all of them must be there."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from depthany.data.labeled import PairedDepth
from depthany.data.pairs import Pair, first_ten

# Metres. Wider than any benchmark: what counts is the protocol's choice, and it must see the whole truth.
WIDE_RANGE_M = (1e-6, 1e6)


class BenchmarkDepth(PairedDepth):
    """A benchmark in its official layout: a subclass knows its pairs (`official_pairs`) and decodes one.

    Args:
        root: folder of the benchmark.

    Raises:
        ValueError: the folder is missing, holds something else than `layout`, or lacks files (the first ten
            are named, all are counted).
    """

    default_range_m = WIDE_RANGE_M
    layout = ""  # what lies below `root` and where it comes from, for messages

    def __init__(self, root: str) -> None:
        with telling(self.layout):
            super().__init__(root)

    @abstractmethod
    def official_pairs(self) -> list[Pair]:
        """The pairs that the benchmark has, in a fixed order, whether their files are there or not."""

    def needed(self, pair: Pair) -> list[Path]:
        """All files of a pair, masks included."""
        return [pair.image, pair.depth]

    def find(self) -> tuple[list[Pair], list[str]]:
        pairs = self.official_pairs()
        require_files(self.root, [path for pair in pairs for path in self.needed(pair)])
        require_unique(pair.name for pair in pairs)
        return pairs, []

    def expectation(self) -> str:
        return f"nothing of {type(self).__name__} is there"  # `layout` follows


@contextmanager
def telling(layout: str) -> Iterator[None]:
    """To a `ValueError` inside is added what was expected on disk and where it comes from."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error}; expected {layout}") from None


def require_files(root: Path, paths: Sequence[Path]) -> None:
    """Raise a `ValueError` that counts the missing files and names the first ten by path below root."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        names = first_ten([str(path).removeprefix(f"{root}/") for path in missing])
        raise ValueError(f"{root}: {len(missing)} of {len(paths)} files are missing, the first: {names}")


def require_unique(names: Iterable[str]) -> None:
    """Raise a `ValueError` that tells the first name that comes twice: it would count twice."""
    seen = set[str]()
    for name in names:
        if name in seen:
            raise ValueError(f"{name} comes twice: remove one of them from the list")
        seen.add(name)


def first_file(candidates: Sequence[Path]) -> Path:
    """The first of several possible places where a file is; the first place where it is in none."""
    return next((path for path in candidates if path.is_file()), candidates[0])


def subfolder(root: Path, name: str) -> Path:
    """`root/name` where it exists, else `root`: archives are unpacked with their top folder or without."""
    return root / name if (root / name).is_dir() else root


def require_mask_shape(path: Path, mask: NDArray[np.bool_], depth: NDArray[np.float32]) -> None:
    """Raise a `ValueError` that names a mask whose size is not that of its depth map."""
    if mask.shape != depth.shape:
        raise ValueError(f"{path}: mask is {mask.shape}, its depth map {depth.shape}: they must agree")
