"""Lists of images and folders of a labeled data set that are left out."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from depthany.system.packages import reason


class Exclusions:
    """An exclusion list: which pairs it names, and which of its lines name none.

    A line is the name of a pair, the path of an image below the root or the folder of images, with or without
    suffix, or one or more folders at any depth, such as `amusement`. Ignores empty lines, those that begin
    with `#`, and what follows a tab.

    Raises:
        ValueError: the list cannot be read or is empty.
    """

    def __init__(self, path: Path) -> None:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: cannot read the list of what is left out: {reason(error)}") from None
        texts = [line.split("\t")[0].strip() for line in lines if line[:1] != "#"]
        self._lines = {PurePosixPath(text).parts: text for text in texts if text}
        self._lines.pop((), None)  # the line "."
        if not self._lines:
            raise ValueError(f"{path}: the list names no image or folder")
        self._lengths = sorted({len(parts) for parts in self._lines})
        self._used = set[tuple[str, ...]]()

    def __len__(self) -> int:
        return len(self._lines)

    def name(self, paths: Iterable[str]) -> bool:
        """Returns whether a line names one of the paths, or a folder in one."""
        found = {line for path in paths for line in self._naming(PurePosixPath(path).parts)}
        self._used |= found
        return bool(found)

    def unused(self) -> list[str]:
        """Returns the lines that have named none of the paths so far."""
        return [text for parts, text in self._lines.items() if parts not in self._used]

    def _naming(self, parts: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        folders = (parts[start : start + n] for n in self._lengths for start in range(len(parts) - n))
        return (line for line in (parts, *folders) if line in self._lines)


def names_of(name: str, image: str, folders: Sequence[str]) -> Iterator[str]:
    """Yields the paths by which a line can name a pair.

    Args:
        name: name of the pair. image: path of its image, absolute or below the first folder; "" if it has no
            file of its own.
        folders: folders below which the image may be named.
    """
    yield name
    yield name + os.path.splitext(image)[1]
    path = os.path.join(folders[0], image)
    for folder in folders:
        if image and path.startswith(below := os.path.join(folder, "")):
            yield path.removeprefix(below)
            yield os.path.splitext(path.removeprefix(below))[0]


def names_of_unpaired(line: str) -> Iterator[str]:
    """Yields the paths by which a line can name a file without partner: `a/0.png` or `a/0.png (no b/0.png)`,
    with or without its first folder and its suffix.
    """
    for path in line.removesuffix(")").split(" (no "):
        for each in (path, path.partition("/")[2]):
            yield each
            yield os.path.splitext(each)[0]
