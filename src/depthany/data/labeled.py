"""Labeled sets: pairs of image and depth file, one way to decode the depth, and a range of it."""

import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from depthany.data.depth_files import DEPTH_SUFFIXES, read_depth
from depthany.data.folders import list_files
from depthany.data.images import IMAGE_SUFFIXES, decode_image, read_bytes
from depthany.data.pairs import Pair, Pairs, first_ten, missing, read_list
from depthany.data.samples import DepthSample, Labels, NoValidPixel, require_same_size

_LARGEST = float(np.finfo(np.float32).max)


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
        list_file: text file that names the pairs instead of the layout: image and depth in a line, relative
            to `root` (see `read_list`). `None` as depth leaves the line out, counted in `left_out`.
        sky_masks: folder, relative to `root` or absolute, with a mask for each image under the same name
            (.png): nonzero is sky, which is valid with disparity 0 (paper, section 3.1).
        expected: images that the paper counted, for `count_warnings`.

    Raises:
        ValueError: the folder is missing or holds no pair, a file has no partner, or the list names files
            that do not exist.
    """

    default_range_m = (1e-3, 80.0)
    in_disparity = False  # `decode` gives disparity (of unknown scale) rather than metres

    def __init__(
        self,
        root: str,
        min_depth: float | None = None,
        max_depth: float | None = None,
        allow_incomplete: bool = False,
        list_file: str | None = None,
        sky_masks: str | None = None,
        expected: int | None = None,
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
        self.sky_masks, self.expected = sky_masks, expected
        self.left_out = dict[str, int]()  # what is not used though it is there, by its reason
        self.pairs, self.lonely = self.find() if list_file is None else self._listed(Path(list_file))
        if sky_masks is not None:
            self._leave_out_without_mask()
        if self.lonely and not allow_incomplete:
            raise ValueError(
                f"{root}: {len(self.lonely)} file(s) without partner ({len(self.pairs)} pairs are whole), "
                f"the first: {', '.join(self.lonely[:10])}; allow_incomplete=true leaves them out"
            )
        if not self.pairs:
            raise ValueError(f"{root}: no pair of image and depth found; {self._told()}")

    @abstractmethod
    def find(self) -> tuple[Sequence[Pair], list[str]]:
        """All pairs in a fixed order, and the files (by path below root) that lack a partner."""

    def locate(self, image: str, depth: str) -> tuple[str, str]:
        """Where the two files of a line in a list are, relative to the root or absolute."""
        return image, depth

    @abstractmethod
    def decode(self, pair: Pair) -> Decoded:
        """Read the depth of a pair; raises a `ValueError` that names an unusable file."""

    def _told(self) -> str:
        """What the set should look like, and what was left out, for a message."""
        layout = " ".join((inspect.getdoc(type(self)) or "").split("\n\n")[0].split()).rstrip(".")
        left_out = "".join(f"; {count} pairs {why} are left out" for why, count in self.left_out.items())
        return f"{type(self).__name__} expects {layout}{left_out}"

    def _listed(self, list_file: Path) -> tuple[Sequence[Pair], list[str]]:
        """The pairs that a list names; a file that does not exist is an error even where the set may be
        incomplete: who names files wants these.
        """
        rows = read_list(list_file)
        known = [self.locate(image, depth) for image, depth in rows if depth != "None"]
        if len(known) < len(rows):
            self.left_out["without depth in the list"] = len(rows) - len(known)
        if absent := missing(self.root, (path for row in known for path in row)):
            raise ValueError(
                f"{list_file}: {len(absent)} file(s) of {2 * len(known)} do not exist below {self.root}, "
                f"the first: {first_ten(absent)}"
            )
        return Pairs(self.root, ((image, image, depth) for image, depth in known)), []

    def _mask_path(self, name: str) -> str:
        stem, suffix = os.path.splitext(name)
        return os.path.join(
            self.sky_masks or "", (stem if suffix.lower() in IMAGE_SUFFIXES else name) + ".png"
        )

    def _leave_out_without_mask(self) -> None:
        absent = set(missing(self.root, (self._mask_path(pair.name) for pair in self.pairs)))
        if absent:
            self.lonely += [
                f"{pair.name} (no sky mask)" for pair in self.pairs if self._mask_path(pair.name) in absent
            ]
            self.pairs = [pair for pair in self.pairs if self._mask_path(pair.name) not in absent]

    def _sky(self, pair: Pair, decoded: Decoded) -> NDArray[np.bool_] | None:
        """[h w] bool: sky as the set knows it, and as the mask beside it says; None where neither does."""
        if self.sky_masks is None:
            return decoded.sky
        path, shape = self.root / self._mask_path(pair.name), decoded.valid.shape
        mask = read_depth(path) != 0
        if mask.shape != shape:
            sizes = " and ".join(f"{width}x{height}" for height, width in (mask.shape, shape))
            raise ValueError(f"{path}: the sky mask and {pair.depth} differ in size: {sizes}")
        return mask if decoded.sky is None else decoded.sky | mask

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        """Name of pair `index`, unique in the set."""
        return self.pairs[index].name

    def files(self, index: int) -> tuple[str, str]:
        """Paths of the image and the depth of pair `index`, for messages; with its name where it is one file
        that holds many.
        """
        pair = self.pairs[index]
        if pair.image == pair.depth:
            return (f"{pair.image} ({pair.name})",) * 2
        return str(pair.image), str(pair.depth)

    def stored_image(self, index: int) -> bytes | NDArray[np.uint8]:
        """The image file of pair `index` as it is on disk, or its pixels where the set holds arrays."""
        return read_bytes(self.pairs[index].image)

    def labels(self, index: int) -> Labels:
        """Disparity and mask of pair `index`; raises `NoValidPixel` where there is none."""
        pair = self.pairs[index]
        decoded = self.decode(pair)
        values, sky = decoded.values, self._sky(pair, decoded)
        low, high = (0.0, _LARGEST) if self.in_disparity else (self.min_depth, self.max_depth)
        measured = decoded.valid & (values >= low) & (values <= high)  # False for NaN and infinity
        if sky is not None:
            measured &= ~sky
        if not measured.any():
            raise NoValidPixel(f"{pair.depth}: no valid pixel {self.range_told()}")
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
        stored = self.stored_image(index)
        if isinstance(stored, bytes):
            stored = decode_image(stored, str(pair.image), convert_images)
        labels = self.labels(index)
        require_same_size(str(pair.image), stored.shape[:2], str(pair.depth), labels.mask.shape)
        return DepthSample(pair.name, stored, labels.disparity, labels.mask)


class FolderDepth(PairedDepth):
    """Image and depth files with equal stems in two folders below `root`.

    Args:
        root: folder that holds both.
        images, depth: names of the two folders.
        depth_scale: stored value of one metre (1000 for millimetres, 1 for metres).
        sky_value: stored value of sky, which is valid with disparity 0 (paper, section 3.1); None if there
            is none.
        h5_key: dataset inside `.h5` files.
        min_depth, max_depth, allow_incomplete, list_file, sky_masks, expected: see `PairedDepth`.

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
        list_file: str | None = None,
        sky_masks: str | None = None,
        expected: int | None = None,
    ) -> None:
        if depth_scale <= 0:
            raise ValueError(f"depth_scale={depth_scale}: expected the stored value of one metre, above 0")
        self.images, self.depth = images, depth
        self.depth_scale, self.sky_value, self.h5_key = depth_scale, sky_value, h5_key
        super().__init__(root, min_depth, max_depth, allow_incomplete, list_file, sky_masks, expected)

    def find(self) -> tuple[Sequence[Pair], list[str]]:
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
