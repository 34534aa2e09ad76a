"""Which images and videos are meant, and what each one's results are called."""

import glob
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from depthany.data.images import IMAGE_SUFFIXES

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")


@dataclass(frozen=True)
class Source:
    """One image or video.

    Attributes:
        path: where it lies.
        name: what its results are called below the output folder, such as "day 1/IMG_7"; it has no suffix.
    """

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEO_SUFFIXES


def find_sources(images: str, out: Path) -> list[Source]:
    """What `images` names, in order.

    Args:
        images: a file; a folder, looked through with all folders in it; a pattern such as `trip/**/*.jpg`;
            or a .txt file with one path a line, as seen from the current folder.
        out: the folder of the results: if it lies inside `images`, what it holds is no input.

    Raises:
        ValueError: nothing is there, the results would lie among the images, or two would have one name.
    """
    if not images.strip():
        raise ValueError("images= names nothing: pass a photo, video, folder, pattern or list.txt")
    given = Path(images).expanduser()
    if given.is_dir():
        root, paths = given, _outside(given, sorted(given.rglob("*")), out)
        wanted = [path for path in paths if _is_known(path)]
    elif given.suffix.lower() == ".txt" and given.is_file():
        wanted = _listed(given)
        root = Path(os.path.commonpath([path.parent for path in wanted]))
    elif given.exists() or not glob.has_magic(images):
        root, wanted = given.parent, [given]  # of any suffix: it was asked for by name
        if not given.exists():
            raise ValueError(f"images={images}: no such file or folder (looked from {Path.cwd()})")
    else:
        root = _before_wildcard(given)
        matches = sorted(Path(match) for match in glob.glob(str(given), recursive=True))
        wanted = [path for path in _outside(root, matches, out) if _is_known(path)]
    if not wanted:
        raise ValueError(
            f"images={images}: no image or video there ({' '.join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)})"
        )
    return _named(root, wanted)


def _is_known(path: Path) -> bool:
    is_hidden = path.name.startswith(".")  # such as the "._a.jpg" that macOS leaves on foreign disks
    return path.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES and not is_hidden and path.is_file()


def _outside(root: Path, paths: list[Path], out: Path) -> list[Path]:
    """The paths that are no results of an earlier run."""
    inside, results = os.path.abspath(root), os.path.abspath(out)
    if inside == results:
        raise ValueError(
            f"out={out} is the folder of the images: results would be taken for images next time"
        )
    if not Path(results).is_relative_to(inside):
        return paths
    return [path for path in paths if not Path(os.path.abspath(path)).is_relative_to(results)]


def _listed(path: Path) -> list[Path]:
    """Absolute paths of a list file, each once."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"images={path}: expected UTF-8 text with one path a line") from None
    stripped = [line.strip() for line in lines]
    if not any(stripped):
        raise ValueError(f"images={path}: the list is empty; expected one path a line")
    absolute = [Path(os.path.abspath(os.path.expanduser(line))) for line in stripped if line]
    return list(dict.fromkeys(absolute))


def _before_wildcard(pattern: Path) -> Path:
    """The folder that holds all that a pattern can match."""
    plain = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        plain.append(part)
    return Path(*plain)


def _named(root: Path, paths: list[Path]) -> list[Source]:
    """Sources named as they lie below `root`; where a.jpg and a.png meet, each keeps its suffix in its
    name.
    """
    relative = [path.relative_to(root) for path in paths]
    stems: dict[str, list[Path]] = defaultdict(list)
    for each in relative:
        stems[_same_file(each.with_suffix(""))].append(each)
    names: dict[str, Source] = {}
    for path, each in zip(paths, relative, strict=True):
        alone = len(stems[_same_file(each.with_suffix(""))]) == 1
        name = each.with_suffix("") if alone else each
        if other := names.get(_same_file(name)):
            raise ValueError(f"{path} and {other.path} would have the same results: rename one of them")
        names[_same_file(name)] = Source(path, name.as_posix())
    return list(names.values())


def _same_file(path: Path) -> str:
    return path.as_posix().casefold()  # as Windows and macOS compare names
