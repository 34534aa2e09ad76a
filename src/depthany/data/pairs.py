"""Which files of a labeled data set belong together."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from depthany.data import folders as all_folders
from depthany.system.packages import reason


@dataclass(frozen=True)
class Pair:
    """An image and its depth file. `name` is unique in its data set: the path of the image below the root."""

    name: str
    image: Path
    depth: Path


class Pairs(Sequence[Pair]):
    """Pairs of paths below a root, in about 150 bytes each. A `Pair` is made on access.

    A list of a million `Pair` objects takes more than 1 GB, and as much again in each loader process: Python
    counts references inside the objects, so the pages that a fork shared are copied.
    """

    def __init__(self, root: Path, rows: Iterable[tuple[str, str, str]]) -> None:
        """`rows` hold name, image and depth; the two paths are relative to `root` or absolute."""
        self.root = root
        encoded = [os.fsencode("\0".join(row)) for row in rows]
        self._ends = np.cumsum([len(row) for row in encoded], dtype=np.int64)
        self._text = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | list[Pair]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        name, image, depth = self._row(index % len(self))
        return Pair(name, self.root / image, self.root / depth)

    def _row(self, index: int) -> tuple[str, str, str]:
        start = int(self._ends[index - 1]) if index else 0
        name, image, depth = os.fsdecode(self._text[start : int(self._ends[index])]).split("\0")
        return name, image, depth

    def where(self, keep: Callable[[str, str, str], bool]) -> "Pairs":
        """Returns the pairs whose name, image and depth `keep` accepts, in the same order."""
        return Pairs(self.root, (row for row in map(self._row, range(len(self))) if keep(*row)))


def walk(root: Path, skip: str = "$^") -> Iterator[tuple[str, list[str]]]:
    """Yields folders below `root` (such as `a/b`; the root is an empty string) with the names of their files,
    both sorted.

    Calls `scandir` once for each folder and `stat` for no file. Follows links to folders (see
    `folders.walk`). Does not enter hidden folders, nor those whose name matches `skip`.
    """
    skipped = re.compile(skip)
    for folder, folders, names in all_folders.walk(root):
        folders[:] = sorted(name for name in folders if name[0] != "." and not skipped.fullmatch(name))
        relative = os.path.relpath(folder, root)
        yield "" if relative == "." else relative.replace(os.sep, "/"), sorted(names)


def read_list(path: Path) -> list[tuple[str, str]]:
    """Returns image and depth of each line of a text file.

    They are separated by a tab, or else by blanks. Ignores more columns (the focal length in the lists of
    BTS), empty lines, and lines that begin with `#`.

    Raises:
        ValueError: the list cannot be read or is empty, or a line has fewer than two columns.
    """
    return [require_pair(path, number, columns) for number, columns in read_columns(path)]


def read_columns(path: Path) -> list[tuple[int, list[str]]]:
    """Returns number and columns of each line of a list; see `read_list`.

    Raises:
        ValueError: the list cannot be read or is empty.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot read the list of pairs: {reason(error)}") from None
    rows = list[tuple[int, list[str]]]()
    for number, line in enumerate(map(str.strip, lines), start=1):
        if line and not line.startswith("#"):
            columns = line.split("\t" if "\t" in line else None)
            rows.append((number, [column.strip() for column in columns]))
    if not rows:
        raise ValueError(f"{path}: the list names no pair")
    return rows


def require_pair(path: Path, number: int, columns: Sequence[str]) -> tuple[str, str]:
    """Returns the first two columns of a line. Raises ValueError, which quotes it, if it has fewer."""
    if len(columns) < 2:
        line = " ".join(columns)
        raise ValueError(f"{path}, line {number}: expected an image and its depth file, got {line!r}")
    return columns[0], columns[1]


def missing(root: Path, paths: Iterable[str]) -> list[str]:
    """Returns those of the paths (relative to `root`, or absolute) that do not exist.

    Lists each folder once instead of asking for each file, which is much faster on network disks.
    """
    files = Listings()
    return [path for path in paths if not files.exists(os.path.join(root, path))]


class Listings:
    """The names in folders, each of which is listed once, however many of its files are asked for."""

    def __init__(self) -> None:
        self._names = dict[str, frozenset[str]]()

    def exists(self, path: str) -> bool:
        """Whether there is such a file or folder."""
        folder, name = os.path.split(path)
        if folder not in self._names:
            is_folder = os.path.isdir(folder)
            self._names[folder] = frozenset(os.listdir(folder)) if is_folder else frozenset()
        return name in self._names[folder]


def require_unique(names: Iterable[str]) -> None:
    """Raises ValueError if a name comes twice: its image would count twice in a score."""
    known = set[str]()
    for name in names:
        if name in known:
            raise ValueError(f"{name} comes twice: remove one of them from the list")
        known.add(name)


def first_ten(paths: Sequence[str]) -> str:
    """Returns at most ten of the paths, for a message."""
    return ", ".join(paths[:10]) + (", ..." if len(paths) > 10 else "")
