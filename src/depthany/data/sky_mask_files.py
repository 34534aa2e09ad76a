"""Where the sky mask of an image lies: under the path of the image, as `depthany.sky` writes it."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from depthany.data.image_formats import ALL_IMAGE_SUFFIXES
from depthany.data.pairs import Listings, Pair


@dataclass(frozen=True)
class SkyMaskFiles:
    """The masks of a data set.

    Attributes:
        folder: folder of the masks.
        images: folder of the images, which `depthany.sky` searched.
    """

    folder: Path
    images: Path

    def candidates(self, pair: Pair) -> Iterator[Path]:
        """Yields the paths that the mask of a pair can have, in the order in which they are tried.

        `depthany.sky` names a mask by the path of its image below the folder of images, with the suffix where
        two images differ only in it. A mask under the name of the pair is found, too.
        """
        if pair.image != pair.depth:  # else one file holds many pairs
            inner = os.path.relpath(pair.image, self.images)
            if not inner.startswith(os.pardir):
                yield self.folder / f"{_stem(inner)}.png"
                yield self.folder / f"{inner}.png"
        yield self.folder / f"{_stem(pair.name)}.png"

    def find(self, pair: Pair) -> Path:
        """Returns the path of the mask of a pair; that of the first choice if there is none."""
        paths = list(self.candidates(pair))
        return next((path for path in paths if path.is_file()), paths[0])

    def lacking(self, pairs: Iterable[Pair]) -> set[str]:
        """Returns the names of the pairs without a mask; lists each folder once."""
        files = Listings()
        return {
            pair.name for pair in pairs if not any(files.exists(str(path)) for path in self.candidates(pair))
        }


def _stem(name: str) -> str:
    """Returns a path without the suffix of an image."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in ALL_IMAGE_SUFFIXES else name
