"""Base class of the benchmarks: their files are known beforehand, and all of them must exist."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from depthany.data.labeled import PairedDepth
from depthany.data.pairs import Pair, first_ten, require_unique

# Metres. Wider than any benchmark: the protocol chooses what counts, and must see all of the ground truth.
WIDE_RANGE_M = (1e-6, 1e6)


class BenchmarkDepth(PairedDepth):
    """A benchmark in its official layout. A subclass lists its pairs (`official_pairs`) and decodes one.

    Args:
        root: folder of the benchmark.

    Raises:
        ValueError: the folder is missing, holds something other than `layout`, or lacks files. The first ten
            are named.
    """

    default_range_m = WIDE_RANGE_M
    layout = ""  # what lies below `root` and where to get it, for messages

    def __init__(self, root: str) -> None:
        with expecting(self.layout):
            super().__init__(root, exif_orientation="apply")

    @abstractmethod
    def official_pairs(self) -> list[Pair]:
        """Returns the pairs of the benchmark in a fixed order, whether their files exist or not."""

    def needed(self, pair: Pair) -> list[Path]:
        """Returns all files of a pair, masks included."""
        return [pair.image, pair.depth]

    def find(self) -> tuple[list[Pair], list[str]]:
        pairs = self.official_pairs()
        require_files(self.root, [path for pair in pairs for path in self.needed(pair)])
        require_unique(pair.name for pair in pairs)
        return pairs, []

    def expectation(self) -> str:
        return f"nothing of {type(self).__name__} is there"  # `layout` follows


@contextmanager
def expecting(layout: str) -> Iterator[None]:
    """Extends a ValueError raised inside by what was expected on disk and where to get it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error}; expected {layout}") from None


def require_files(root: Path, paths: Sequence[Path]) -> None:
    """Raises ValueError if files are missing; it counts them and names the first ten."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        names = first_ten([str(path).removeprefix(f"{root}/") for path in missing])
        raise ValueError(f"{root}: {len(missing)} of {len(paths)} files are missing, the first: {names}")


def first_file(candidates: Sequence[Path]) -> Path:
    """Returns the first path that is a file; the first path if none is."""
    return next((path for path in candidates if path.is_file()), candidates[0])


def subfolder(root: Path, name: str) -> Path:
    """Returns `root/name` if it exists, else `root`: archives are unpacked with or without their top
    folder.
    """
    return root / name if (root / name).is_dir() else root
