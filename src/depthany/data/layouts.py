"""Data sets whose pairs of image and depth follow from the names of their folders and files."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from depthany.data.labeled import PairedDepth
from depthany.data.pairs import Pair, walk

ANYWHERE = r"(?:(.*)/)?"  # in front of the name of a folder, which may then lie at any depth below the root

# Patterns of folders and files, and the files that match, by the groups of both
_Kind = tuple[re.Pattern[str], re.Pattern[str], dict[tuple[str, ...], str]]


@dataclass(frozen=True)
class Layout:
    """Where a data set keeps its images and depth maps, as regular expressions.

    A folder (relative to the root, `/` between its parts) and a file name must match in full. An image and a
    depth file belong together if the groups of both patterns match the same text.
    """

    image_folder: str
    image_file: str
    depth_folder: str
    depth_file: str
    skip: str = "$^"  # names of folders that are not entered: they hold neither, and may be large

    def find(self, root: Path, depth_root: Path | None = None) -> tuple[list[tuple[str, str]], list[str]]:
        """Returns (image, depth) paths below root, in the order of the images, and those without partner.

        Args:
            root: folder of images and depth maps.
            depth_root: folder of the depth maps, whose paths are then absolute; None = `root`.

        Raises:
            ValueError: two images, or two depth maps, have equal groups.
        """
        images: dict[tuple[str, ...], str] = {}
        depths: dict[tuple[str, ...], str] = {}
        of_images = (re.compile(self.image_folder), re.compile(self.image_file), images)
        of_depths = (re.compile(self.depth_folder), re.compile(self.depth_file), depths)
        if depth_root is None:
            self._walk(root, "", [of_images, of_depths])
        else:
            self._walk(root, "", [of_images])
            self._walk(depth_root, os.path.abspath(depth_root) + "/", [of_depths])
        unpaired = [path for key, path in images.items() if key not in depths]
        unpaired += [path for key, path in depths.items() if key not in images]
        return [(path, depths[key]) for key, path in images.items() if key in depths], sorted(unpaired)

    def _walk(self, root: Path, before: str, kinds: Iterable[_Kind]) -> None:
        """Adds the files below a folder to what was found. Their paths begin with `before`."""
        for folder, names in walk(root, self.skip):
            for in_folder, in_file, found in kinds:
                if (place := in_folder.fullmatch(folder)) is None:
                    continue
                prefix = before + (f"{folder}/" if folder else "")
                for name in names:
                    if file := in_file.fullmatch(name):
                        key = place.groups("") + file.groups("")
                        if key in found:
                            raise ValueError(
                                f"{root}: {found[key]} and {prefix + name} are the same frame: remove one of "
                                "them, or choose a root that holds one"
                            )
                        found[key] = prefix + name


class LayoutDepth(PairedDepth):
    """A data set with a `Layout`. A subclass provides `layout` and `decode`."""

    layout: Layout

    def find(self) -> tuple[Sequence[Pair], list[str]]:
        rows, unpaired = self.layout.find(self.root)
        return self.pairs_of(self.keep(rows)), unpaired

    def keep(self, rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Returns those of the (image, depth) paths that are used; a subclass counts the others."""
        return rows
