"""Lists of files below a folder."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from depthany.data.image_formats import count_passed_over, describe_passed_over
from depthany.system.packages import reason


def list_files(
    folder: Path, suffixes: tuple[str, ...], passed_over: Counter[str] | None = None
) -> dict[str, Path]:
    """Returns the files below a folder, by their path without suffix relative to it, in sorted order.

    Leaves out hidden files and what lies in hidden folders below it, such as `.Trash-1000` and `.thumbnails`.

    Args:
        suffixes: endings of the files, in lower case.
        passed_over: counts by suffix, to which the files are added that look like images or other media and
            have another ending.

    Raises:
        ValueError: the folder is missing, has no such file, or has two that differ only in the suffix; or a
            folder in it cannot be listed.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder (looked from {Path.cwd()})")
    paths, others = list[str](), Counter[str]()
    for parent, folders, names in walk(folder):  # calls stat for no file, unlike Path.rglob
        folders[:] = [name for name in folders if name[0] != "."]
        below = "" if parent == str(folder) else os.path.relpath(parent, folder).replace(os.sep, "/") + "/"
        paths += [below + name for name in names if name.lower().endswith(suffixes) and name[0] != "."]
        count_passed_over(names, suffixes, others)
    found: dict[str, Path] = {}
    for path in sorted(paths, key=lambda path: path.split("/")):  # folder by folder
        stem = path[: path.rindex(".")]
        if stem in found:
            raise ValueError(f"{folder / path} and {found[stem].name} have the same stem: remove one of them")
        found[stem] = folder / path
    if not found:
        hint = f"; {describe_passed_over(others)}" if others else ""
        raise ValueError(f"{folder}: no file with suffix {', '.join(suffixes)}{hint}")
    if passed_over is not None:
        passed_over.update(others)
    return found


def walk(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yields the path of each folder, the names of its folders and the names of its files, like `os.walk`.

    Follows links to folders, since large data sets are spread over several disks, but not a link to a folder
    that holds it, which would never end.

    Raises:
        ValueError: a folder cannot be listed.
    """
    for folder, folders, names in os.walk(root, onerror=_refuse, followlinks=True):
        folders[:] = [name for name in folders if not links_up(os.path.join(folder, name))]
        yield folder, folders, names


def links_up(path: str) -> bool:
    """Returns whether a path is a link to a folder that holds it."""
    if not os.path.islink(path):
        return False
    here, there = os.path.realpath(os.path.dirname(path)), os.path.realpath(path)
    return os.path.commonpath([here, there]) == there


def _refuse(error: OSError) -> None:
    raise ValueError(f"{error.filename}: cannot list the folder: {reason(error)}")
