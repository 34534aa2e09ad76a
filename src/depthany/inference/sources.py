"""Which images and videos are predicted, and the names of their results."""

import glob
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from depthany.data.folders import links_up, walk
from depthany.data.image_formats import (
    VIDEO_SUFFIXES,
    describe_passed_over,
    image_suffixes,
    media_suffix,
)


@dataclass(frozen=True)
class Source:
    """One image or video.

    Attributes:
        path: path of the file.
        name: name of its results below the output folder, without suffix, such as "day 1/IMG_7".
    """

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        """Whether the suffix is that of a video."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES

    def targets(self, endings: Mapping[str, str], out: Path, overwrite: bool) -> dict[str, Path]:
        """Returns the file to write for each format; without those that exist, unless `overwrite`.

        Args:
            endings: by format, the end of a file's name.
        """
        paths = {name: out / (self.name + ending) for name, ending in endings.items()}
        return {name: path for name, path in paths.items() if overwrite or not path.exists()}


def find_sources(images: str, out: Path, passed_over: Counter[str] | None = None) -> list[Source]:
    """Returns the images and videos that `images` names, in order.

    Args:
        images: a file; a folder, searched with all folders in it, linked ones too; a pattern such as
            `trip/**/*.jpg`; or a .txt file with one path per line, relative to the current folder.
        out: folder of the results. If it lies inside `images`, the files in it are not predicted.
        passed_over: counts by suffix, to which the files of a folder or pattern are added that look like
            images or other media and are not predicted.

    Raises:
        ValueError: there is no image or video, the results would lie among the images, or two results would
            have the same name.
    """
    if not images.strip():
        raise ValueError("images= names nothing: pass a photo, video, folder, pattern or list.txt")
    given, others = Path(images).expanduser(), Counter[str]()
    if given.is_dir():
        root, paths = given, sorted(Path(folder, name) for folder, _, names in walk(given) for name in names)
        wanted = _known(_outside(given, paths, out), others)
    elif given.suffix.lower() == ".txt" and given.is_file():
        wanted = _listed(given)
        root = Path(os.path.commonpath([path.parent for path in wanted]))
    elif given.exists() or not glob.has_magic(images):
        root, wanted = given.parent, [given]  # whatever its suffix
        if not given.exists():
            raise ValueError(f"images={images}: no such file or folder (looked from {Path.cwd()})")
    else:
        root = _before_wildcard(given)
        matches = sorted(Path(match) for match in glob.glob(str(given), recursive=True))
        wanted = _known(_outside(root, _not_below(root, matches, links_up), out), others)
    if not wanted:
        known = " ".join(image_suffixes() + VIDEO_SUFFIXES)
        hint = f"; {describe_passed_over(others)}" if others else ""
        raise ValueError(f"images={images}: no image or video there ({known}){hint}")
    if passed_over is not None:
        passed_over.update(others)
    return _named(root, wanted)


def _known(paths: Iterable[Path], passed_over: Counter[str]) -> list[Path]:
    """Returns the images and videos among files and folders; counts other media by suffix."""
    suffixes, wanted = image_suffixes() + VIDEO_SUFFIXES, list[Path]()
    for path in paths:
        if not (suffix := media_suffix(path.name)) or not path.is_file():
            continue
        if suffix in suffixes:
            wanted.append(path)
        else:
            passed_over[suffix] += 1
    return wanted


def _outside(root: Path, paths: list[Path], out: Path) -> list[Path]:
    """Returns the paths without results of an earlier run."""
    results = os.path.realpath(out)
    if os.path.realpath(root) == results:
        raise ValueError(
            f"out={out} is the folder of the images: pass another one, or the next run predicts the results"
        )
    return _not_below(root, paths, lambda folder: os.path.realpath(folder) == results)


def _not_below(root: Path, paths: list[Path], is_left_out: Callable[[str], bool]) -> list[Path]:
    """Returns the paths without those in, or below, a folder below `root` that is left out."""

    @cache
    def is_below(folder: Path) -> bool:
        return root in folder.parents and (is_left_out(str(folder)) or is_below(folder.parent))

    return [path for path in paths if not is_below(path.parent)]


def _listed(path: Path) -> list[Path]:
    """Returns the absolute paths of a list file, without repetitions."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"images={path}: expected UTF-8 text with one path per line") from None
    stripped = [line.strip() for line in lines]
    if not any(stripped):
        raise ValueError(f"images={path}: the list is empty; expected one path per line")
    absolute = [Path(os.path.abspath(os.path.expanduser(line))) for line in stripped if line]
    return list(dict.fromkeys(absolute))


def _before_wildcard(pattern: Path) -> Path:
    """Returns the folder that holds everything that a pattern can match."""
    plain = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        plain.append(part)
    return Path(*plain)


def _named(root: Path, paths: list[Path]) -> list[Source]:
    """Returns sources named by their path below `root`, without suffix unless a.jpg stands beside a.png."""
    relative = [path.relative_to(root) for path in paths]
    stems: dict[str, list[Path]] = defaultdict(list)
    for inner in relative:
        stems[_comparable(inner.with_suffix(""))].append(inner)
    names: dict[str, Source] = {}
    for path, inner in zip(paths, relative, strict=True):
        is_alone = len(stems[_comparable(inner.with_suffix(""))]) == 1
        name = inner.with_suffix("") if is_alone else inner
        if other := names.get(_comparable(name)):
            raise ValueError(f"{path} and {other.path} would have the same results: rename one of them")
        names[_comparable(name)] = Source(path, name.as_posix())
    return list(names.values())


def _comparable(path: Path) -> str:
    return path.as_posix().casefold()  # Windows and macOS ignore the case of names
