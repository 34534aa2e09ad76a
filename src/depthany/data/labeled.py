"""Labeled sets: pairs of image and depth file, one way to decode the depth, and a range of it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from depthany.data.dataset import DepthSample, Labels, require_same_size
from depthany.data.depth_io import DEPTH_SUFFIXES, read_depth
from depthany.data.files import list_files
from depthany.data.images import IMAGE_SUFFIXES, decode_image, read_bytes

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Pair:
    """An image and its depth file; `name` is unique in its set (the image's path below the root)."""

    name: str
    image: Path
    depth: Path


@dataclass(frozen=True)
class Decoded:
    """What the files of a pair say, before the set's range is applied.

    values: [h w] float32 in metres, or in disparity where the set is `in_disparity`.
    valid: [h w] bool, True where format and mask call it measured; zeros, NaN and the like need not be cut.
    sky: [h w] bool, True where the set knows sky; None where it does not.
    """

    values: NDArray[np.float32]
    valid: NDArray[np.bool_]
    sky: NDArray[np.bool_] | None = None


class PairedDepth(ABC):
    """Base of the readers: a subclass lists its pairs (`find`) and decodes one (`decode`).

    Args:
        root: folder of the data set, in its official layout.
        min_depth, max_depth: metres; what lies outside is invalid, as are 0, negative numbers, NaN and
            infinity. None takes the set's own.
        allow_incomplete: leave out files without partner, named in `lonely`, instead of refusing the set.

    Raises:
        ValueError: the folder is missing or holds no pair, or a file has no partner.
    """

    default_range_m = (1e-3, 80.0)
    in_disparity = False  # `decode` gives disparity (of unknown scale) rather than metres

    def __init__(
        self,
        root: str,
        min_depth: float | None = None,
        max_depth: float | None = None,
        allow_incomplete: bool = False,
    ) -> None:
        self.root = Path(root)
        self.min_depth = self.default_range_m[0] if min_depth is None else min_depth
        self.max_depth = self.default_range_m[1] if max_depth is None else max_depth
        if not 0 < self.min_depth < self.max_depth:
            raise ValueError(
                f"min_depth={min_depth} and max_depth={max_depth}: expected 0 < min_depth < max_depth"
            )
        if not self.root.is_dir():
            raise ValueError(f"{self.root}: no such folder (looked from {Path.cwd()})")
        self.pairs, self.lonely = self.find()
        if self.lonely and not allow_incomplete:
            raise ValueError(
                f"{root}: {len(self.lonely)} file(s) without partner ({len(self.pairs)} pairs are whole), "
                f"the first: {', '.join(self.lonely[:10])}"
            )
        if not self.pairs:
            raise ValueError(f"{root}: no pair of image and depth found for {type(self).__name__}")

    @abstractmethod
    def find(self) -> tuple[list[Pair], list[str]]:
        """All pairs in a fixed order, and the files (by path below root) that lack a partner."""

    @abstractmethod
    def decode(self, pair: Pair) -> Decoded:
        """Read the depth of a pair; raises a `ValueError` that names an unusable file."""

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        """Name of pair `index`, unique in the set."""
        return self.pairs[index].name

    def files(self, index: int) -> tuple[str, str]:
        """Paths of the image and the depth of pair `index`, for messages."""
        return str(self.pairs[index].image), str(self.pairs[index].depth)

    def stored_image(self, index: int) -> bytes:
        """The image file of pair `index` as it is on disk."""
        return read_bytes(self.pairs[index].image)

    def labels(self, index: int) -> Labels:
        """Disparity and mask of pair `index`; raises a `ValueError` where no pixel is valid."""
        pair = self.pairs[index]
        decoded = self.decode(pair)
        values, sky = decoded.values, decoded.sky
        low, high = (0.0, _LARGEST) if self.in_disparity else (self.min_depth, self.max_depth)
        measured = decoded.valid & (values >= low) & (values <= high)  # False for NaN and infinity
        if sky is not None:
            measured &= ~sky
        if not measured.any():
            raise ValueError(f"{pair.depth}: no valid pixel {self.range_told()}")
        with np.errstate(all="ignore"):  # what is not measured is not copied
            inverse = values if self.in_disparity else 1.0 / values
        inverse = inverse.astype(np.float32, copy=False)
        disparity: NDArray = cv2.copyTo(inverse, measured.view(np.uint8))  # 0 where not measured
        return Labels(disparity, measured if sky is None else measured | sky)

    def range_told(self) -> str:
        """What counts as valid and what to do where nothing does, for a message."""
        if self.in_disparity:
            return "(disparity 0 or more): remove the pair"
        return f"(between {self.min_depth} and {self.max_depth} m): remove the pair, or correct max_depth"

    def read(self, index: int, convert_images: bool = False) -> DepthSample:
        """Read pair `index`; raises a `ValueError` that names the file where image or depth is unusable."""
        pair = self.pairs[index]
        image = decode_image(self.stored_image(index), str(pair.image), convert_images)
        labels = self.labels(index)
        require_same_size(str(pair.image), image.shape[:2], str(pair.depth), labels.mask.shape)
        return DepthSample(pair.name, image, labels.disparity, labels.mask)


class FolderDepth(PairedDepth):
    """Image and depth files with equal stems in two folders below `root`.

    Args:
        root: folder that holds both.
        images, depth: names of the two folders.
        depth_scale: stored value of one metre (1000 for millimetres, 1 for metres).
        sky_value: stored value of sky, which is valid with disparity 0 (paper, section 3.1); None if there
            is none.
        h5_key: dataset inside `.h5` files.
        min_depth, max_depth, allow_incomplete: see `PairedDepth`.

    Raises:
        ValueError: a folder is missing or empty, or a file has no partner in the other folder.
    """

    def __init__(
        self,
        root: str,
        images: str = "images",
        depth: str = "depth",
        depth_scale: float = 1000.0,
        sky_value: float | None = None,
        min_depth: float = 1e-3,
        max_depth: float = 80.0,
        h5_key: str = "depth",
        allow_incomplete: bool = False,
    ) -> None:
        if depth_scale <= 0:
            raise ValueError(f"depth_scale={depth_scale}: expected the stored value of one metre, above 0")
        self.images, self.depth = images, depth
        self.depth_scale, self.sky_value, self.h5_key = depth_scale, sky_value, h5_key
        super().__init__(root, min_depth, max_depth, allow_incomplete)

    def find(self) -> tuple[list[Pair], list[str]]:
        images = list_files(self.root / self.images, IMAGE_SUFFIXES)
        depths = list_files(self.root / self.depth, DEPTH_SUFFIXES)
        lonely = [f"{self.images}/{stem}" for stem in images if stem not in depths]
        lonely += [f"{self.depth}/{stem}" for stem in depths if stem not in images]
        pairs = [Pair(stem, images[stem], depths[stem]) for stem in images if stem in depths]
        return pairs, sorted(lonely)

    def decode(self, pair: Pair) -> Decoded:
        stored = read_depth(pair.depth, self.h5_key)
        sky = None if self.sky_value is None else stored == self.sky_value
        stored /= self.depth_scale  # in place: fresh memory costs as much as the division
        return Decoded(stored, np.ones(stored.shape, bool), sky)

    def range_told(self) -> str:
        return (
            f"(between {self.min_depth} and {self.max_depth} m at depth_scale={self.depth_scale:g}): "
            "remove the pair, or correct depth_scale or max_depth"
        )
