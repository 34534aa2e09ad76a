"""Data sets whose pairs of image and depth follow from the names of their folders and files."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from depthany.data.labeled import PairedDepth
from depthany.data.pairs import Pair, walk

ANYWHERE = r"(?:(.*)/)?"  # in front of the name of a folder, which may then lie at any depth below the root


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

    def find(self, root: Path) -> tuple[list[tuple[str, str]], list[str]]:
        """Returns (image, depth) paths below root, in the order of the images, and those without partner."""
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
        unpaired = [path for key, path in images.items() if key not in depths]
        unpaired += [path for key, path in depths.items() if key not in images]
        return [(path, depths[key]) for key, path in images.items() if key in depths], sorted(unpaired)


class LayoutDepth(PairedDepth):
    """A data set with a `Layout`. A subclass provides `layout` and `decode`."""

    layout: Layout

    def find(self) -> tuple[Sequence[Pair], list[str]]:
        rows, unpaired = self.layout.find(self.root)
        return self.pairs_of(self.keep(rows)), unpaired

    def keep(self, rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Returns those of the (image, depth) paths that are used; a subclass counts the others."""
        return rows
