"""Which files of a labeled set belong together: found by their layout on disk, or named by a list."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from depthany.data import folders as files
from depthany.system.packages import reason


@dataclass(frozen=True)
class Pair:
    """An image and its depth file; `name` is unique in its set (the image's path below the root)."""

    name: str
    image: Path
    depth: Path


class Pairs(Sequence[Pair]):
    """Pairs of paths below a root, about 150 bytes each, made into `Pair` objects when they are asked for.

    A list of a million `Pair` objects takes more than 1 GB, and again as much in each loader process: Python
    counts references inside the objects, which copies the pages that a fork had shared.
    """

    def __init__(self, root: Path, rows: Iterable[tuple[str, str, str]]) -> None:
        """`rows`: name, image and depth; the two paths are relative to `root` or absolute."""
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
        index %= len(self)
        start = int(self._ends[index - 1]) if index else 0
        name, image, depth = os.fsdecode(self._text[start : int(self._ends[index])]).split("\0")
        return Pair(name, self.root / image, self.root / depth)


@dataclass(frozen=True)
class Layout:
    """Where a set keeps its images and depth maps.

    Folders (relative to the root, `/` between them) and file names must match their pattern in full. An image
    and a depth file belong together where the groups of both patterns have the same text.
    """

    image_folder: str
    image_file: str
    depth_folder: str
    depth_file: str
    skip: str = "$^"  # names of folders that are not entered: they hold neither and may hold much

    def find(self, root: Path) -> tuple[list[tuple[str, str]], list[str]]:
        """Image and depth paths relative to `root`, in the order of the images, and those without partner."""
        images, depths = dict[tuple[str, ...], str](), dict[tuple[str, ...], str]()
        kinds = (
            (re.compile(self.image_folder), re.compile(self.image_file), images),
            (re.compile(self.depth_folder), re.compile(self.depth_file), depths),
        )
        for folder, names in walk(root, self.skip):
            for in_folder, in_file, found in kinds:
                if (place := in_folder.fullmatch(folder)) is None:
                    continue
                prefix = f"{folder}/" if folder else ""
                for name in names:
                    if file := in_file.fullmatch(name):
                        found[place.groups("") + file.groups("")] = prefix + name
        lonely = [path for key, path in images.items() if key not in depths]
        lonely += [path for key, path in depths.items() if key not in images]
        return [(path, depths[key]) for key, path in images.items() if key in depths], sorted(lonely)


def walk(root: Path, skip: str = "$^") -> Iterator[tuple[str, list[str]]]:
    """Folders below `root` (as `a/b`, the root as an empty text) with the names of their files, both sorted.

    One `scandir` per folder and no `stat` per file. Links to folders are followed (see `files.walk`). Folders
    whose name matches `skip`, and hidden ones, are not entered.
    """
    skipped = re.compile(skip)
    for folder, folders, names in files.walk(root):
        folders[:] = sorted(each for each in folders if each[0] != "." and not skipped.fullmatch(each))
        relative = os.path.relpath(folder, root)
        yield "" if relative == "." else relative.replace(os.sep, "/"), sorted(names)


def read_list(path: Path) -> list[tuple[str, str]]:
    """Image and depth of each line of a text file.

    The two are separated by a tab, or else by blanks; further columns (the focal length in the lists of BTS)
    are ignored, and so are empty lines and those that begin with `#`.

    Raises:
        ValueError: the list cannot be read, is empty, or a line has less than two columns.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot read the list of pairs: {reason(error)}") from None
    rows = list[tuple[str, str]]()
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        columns = line.strip().split("\t" if "\t" in line.strip() else None)
        if len(columns) < 2:
            raise ValueError(f"{path}, line {number}: expected an image and its depth file, got {line!r}")
        rows.append((columns[0].strip(), columns[1].strip()))
    if not rows:
        raise ValueError(f"{path}: the list names no pair")
    return rows


def missing(root: Path, paths: Iterable[str]) -> list[str]:
    """Those of the paths (relative to `root`, or absolute) that do not exist; lists each folder once."""
    names = dict[str, frozenset[str]]()
    absent = list[str]()
    for path in paths:
        folder, name = os.path.split(os.path.join(root, path))
        if folder not in names:
            names[folder] = frozenset(os.listdir(folder)) if os.path.isdir(folder) else frozenset()
        if name not in names[folder]:
            absent.append(path)
    return absent


def first_ten(paths: Sequence[str]) -> str:
    """For a message: at most ten of them."""
    return ", ".join(paths[:10]) + (", ..." if len(paths) > 10 else "")
