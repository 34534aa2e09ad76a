"""Labeled data sets as pairs of files: an image and its depth."""

import inspect
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depthany.data import orientation
from depthany.data.depth_files import read_depth
from depthany.data.exclusions import Exclusions, names_of, names_of_unpaired
from depthany.data.images import decode_image, read_bytes
from depthany.data.pairs import Pair, Pairs, first_ten, missing, read_list
from depthany.data.samples import LabeledSample, NoValidPixel, require_same_size
from depthany.data.sky_mask_files import SkyMaskFiles
from depthany.data.targets import Labels, Unit
from depthany.system.choices import require_choice

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Decoded:
    """What the files of a pair hold, before the range of the data set is applied.

    values: [h w] float32 in the unit of the data set.
    valid: [h w] bool, True where the file format or a mask file calls the value valid. Values outside of the
        range, NaN and infinity need not be excluded.
    sky: [h w] bool, True in the sky; None if the files do not say.
    stored_as: name of the type that the file has, such as uint16; empty if the reader does not say.
    resized_from: height and width of the stored labels if they were resized to those of the image, else None.
    """

    values: NDArray[np.float32]
    valid: NDArray[np.bool_]
    sky: NDArray[np.bool_] | None = None
    stored_as: str = ""
    resized_from: tuple[int, int] | None = None


class PairedDepth(ABC):
    """Base class of the readers. A subclass lists its pairs (`find`) and decodes the labels (`decode`).

    Args:
        root: folder of the data set, in its official layout.
        min_depth, max_depth: metres. Depth outside of this range is invalid, and so are 0, negative numbers,
            NaN and infinity. None takes the default of the data set.
        allow_incomplete: leave out files without partner instead of raising; they are listed in `unpaired`.
        list_file: text file that names the pairs, image and depth in each line, relative to `root` (see
            `read_list`). Lines with `None` as depth are left out, and counted in `left_out`.
        exclude_file: text file, relative to `root` or absolute, of images and folders that are left out, and
            counted in `left_out` (see `Exclusions`). It is an error if it names none, and a line that names
            none is a warning.
        sky_masks: folder, relative to `root` or absolute, that holds a mask for each image (.png) under the
            image's path below the folder of images, as `depthany.sky` writes it, or under the name of the
            pair. Nonzero pixels are sky (paper, section 3.1).
        expected: number of images in the paper, for `count_warnings`.
        focal, focal_width: focal length in pixels, and the width in pixels of the images that have it; None =
            unknown, and the width of each image. `stage.canonical_focal` scales depth by them, and the
            checkpoint of a metric model stores them if both are the same for all labeled sets.
        exif_orientation: `apply`: labels are aligned to the image as displayed, turned by its EXIF
            orientation; `ignore`: to the image as stored. None = apply, with a warning where the sizes of
            image and labels do not decide it.

    Attributes:
        pairs: what is used.
        unpaired: files without partner, by their path below root.
        upright: whether images are turned by their EXIF orientation.
        warnings: lines for the user.
        passed_over: by suffix, how many files look like images or other media and are not read.
        left_out: number of pairs that exist and are not used, by reason.

    Raises:
        ValueError: the folder is missing or holds no pair, a file has no partner, or the list names files
            that do not exist.
    """

    default_range_m = (1e-3, 80.0)
    unit: Unit = "m"  # of the values that `decode` returns
    label_word = "depth"  # what the labels are, for messages
    scale_is_known = True  # False: "metres" are units of a reconstruction, of any size

    def __init__(
        self,
        root: str,
        min_depth: float | None = None,
        max_depth: float | None = None,
        allow_incomplete: bool = False,
        list_file: str | None = None,
        sky_masks: str | None = None,
        expected: int | None = None,
        exif_orientation: str | None = None,
        focal: float | None = None,
        focal_width: float | None = None,
        exclude_file: str | None = None,
    ) -> None:
        self.root = Path(root)
        if exif_orientation is not None:
            require_choice("exif_orientation", exif_orientation, orientation.CHOICES)
        self.exif_orientation, self.upright = exif_orientation, exif_orientation != "ignore"
        self.min_depth = self.default_range_m[0] if min_depth is None else min_depth
        self.max_depth = self.default_range_m[1] if max_depth is None else max_depth
        if not 0 < self.min_depth < self.max_depth:
            raise ValueError(
                f"min_depth={min_depth} and max_depth={max_depth}: expected 0 < min_depth < max_depth"
            )
        for key, pixels in (("focal", focal), ("focal_width", focal_width)):
            if pixels is not None and not 0 < pixels < np.inf:
                raise ValueError(f"{key}={pixels}: expected pixels, more than 0")
        self.focal, self.focal_width = focal, focal_width
        if not self.root.is_dir():
            raise ValueError(f"{self.root}: no such folder (looked from {Path.cwd()})")
        self.sky_masks, self.expected = sky_masks, expected
        self.left_out, self.passed_over = dict[str, int](), Counter[str]()
        self.warnings = list[str]()
        self.pairs, self.unpaired = self.find() if list_file is None else self._listed(Path(list_file))
        if exclude_file is not None:
            self._leave_out_named(exclude_file)
        if sky_masks is not None:
            self._leave_out_without_mask()
        if self.unpaired and not allow_incomplete:
            raise ValueError(
                f"{root}: {len(self.unpaired)} file(s) without partner ({len(self.pairs)} complete pairs), "
                f"the first: {', '.join(self.unpaired[:10])}; allow_incomplete=true leaves them out"
            )
        if not self.pairs:
            raise ValueError(f"{root}: no pair of image and {self.label_word} found; {self.expectation()}")

    @abstractmethod
    def find(self) -> tuple[Sequence[Pair], list[str]]:
        """Returns all pairs in a fixed order, and the files (by path below root) without partner."""

    def listed_rows(self, list_file: Path) -> list[tuple[str, str]]:
        """Returns image and depth of each line of a list, as they stand there; `None` as depth = no depth."""
        return read_list(list_file)

    def locate(self, image: str, depth: str) -> tuple[str, str]:
        """Returns the paths of the two files in a line of a list, relative to the root or absolute."""
        return image, depth

    @abstractmethod
    def decode(self, pair: Pair) -> Decoded:
        """Reads the labels of a pair. Raises ValueError, which names the file, if it is unusable."""

    def pairs_of(self, rows: Iterable[tuple[str, str]]) -> Pairs:
        """Returns pairs from (image, depth) paths; a pair is named by the path of its image."""
        return Pairs(self.root, ((image, image, depth) for image, depth in rows))

    def count_left_out(self, why: str, count: int) -> None:
        """Notes in `left_out` how many pairs exist and are not used."""
        if count:
            self.left_out[why] = self.left_out.get(why, 0) + count

    def expectation(self) -> str:
        """Returns what the data set should look like, and what was left out, for a message."""
        layout = " ".join((inspect.getdoc(type(self)) or "").split("\n\n")[0].split()).rstrip(".")
        left_out = "".join(f"; {count} pair(s) {why} are left out" for why, count in self.left_out.items())
        return f"{type(self).__name__} expects {layout}{left_out}"

    def _listed(self, list_file: Path) -> tuple[Sequence[Pair], list[str]]:
        """Returns the pairs of a list. A missing file is an error even with `allow_incomplete`."""
        rows = self.listed_rows(list_file)
        known = [self.locate(image, depth) for image, depth in rows if depth != "None"]
        self.count_left_out("without depth in the list", len(rows) - len(known))
        if absent := missing(self.root, (path for row in known for path in row)):
            raise ValueError(
                f"{list_file}: {len(absent)} file(s) of {2 * len(known)} do not exist below {self.root}, "
                f"the first: {first_ten(absent)}"
            )
        return self.pairs_of(self.keep_listed(known)), []

    def keep_listed(self, rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Returns those of the listed (image, depth) paths that are used; a subclass with settings that leave
        out pairs applies them to a list, too, and counts what they leave out.
        """
        return rows

    def _leave_out_named(self, exclude_file: str) -> None:
        """Leaves out the pairs that a list names, and files without partner that it names."""
        lines, folders = Exclusions(self.root / exclude_file), (str(self.root), str(self.image_folder()))

        def is_kept(name: str, image: str, depth: str) -> bool:
            return not lines.name(names_of(name, "" if image == depth else image, folders))

        found, first = len(self.pairs), self.pairs[0].name if len(self.pairs) else "none"
        if isinstance(self.pairs, Pairs):
            self.pairs = self.pairs.where(is_kept)
        else:
            self.pairs = [each for each in self.pairs if is_kept(each.name, str(each.image), str(each.depth))]
        if found and len(self.pairs) == found:
            raise ValueError(
                f"exclude_file={exclude_file} names no image or folder below {self.root}, such as {first}"
            )
        self.count_left_out(f"named in {exclude_file}", found - len(self.pairs))
        self.unpaired = [name for name in self.unpaired if not lines.name(names_of_unpaired(name))]
        if unused := lines.unused():  # no error: a list may name scenes of several splits
            self.warnings.append(
                f"exclude_file={exclude_file}: {len(unused)} of its {len(lines)} lines name no image or "
                f"folder of this set, the first: {first_ten(unused)}"
            )

    def image_folder(self) -> Path:
        """Returns the folder of the images, relative to which `sky_masks` are named."""
        return self.root

    def _sky_files(self) -> SkyMaskFiles:
        return SkyMaskFiles(self.root / str(self.sky_masks), self.image_folder())

    def _leave_out_without_mask(self) -> None:
        if absent := self._sky_files().lacking(self.pairs):
            self.unpaired += [f"{pair.name} (no sky mask)" for pair in self.pairs if pair.name in absent]
            self.pairs = [pair for pair in self.pairs if pair.name not in absent]

    def _sky(self, pair: Pair, decoded: Decoded) -> NDArray[np.bool_] | None:
        """Returns the sky [h w] of the data set joined with that of `sky_masks`; None if neither exists."""
        if self.sky_masks is None:
            return decoded.sky
        path = self._sky_files().find(pair)
        mask = read_depth(path) != 0
        sizes = (str(pair.depth), decoded.valid.shape, str(path), mask.shape)
        require_same_size(*sizes, what="sky mask", of="depth map")
        return mask if decoded.sky is None else decoded.sky | mask

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        """Returns the name of pair `index`, unique in the data set."""
        return self.pairs[index].name

    def files(self, index: int) -> tuple[str, str]:
        """Returns the paths of image and depth, for messages.

        One file that holds many pairs is followed by the name of the pair.
        """
        pair = self.pairs[index]
        if pair.image == pair.depth:
            return (f"{pair.image} ({pair.name})",) * 2
        return str(pair.image), str(pair.depth)

    def stored_image(self, index: int) -> bytes | NDArray[np.uint8]:
        """Returns the content of an image file, or pixels [h w 3] uint8 where the data set holds arrays."""
        return read_bytes(self.pairs[index].image)

    def labels(self, index: int) -> Labels:
        """Returns the labels of pair `index`. Raises NoValidPixel if no pixel is valid."""
        return self.labels_of(self.pairs[index], self.decode(self.pairs[index]))

    def labels_of(self, pair: Pair, decoded: Decoded) -> Labels:
        """Returns decoded values as labels: applies the range, and removes sky from the valid pixels."""
        low, high = self.valid_range()
        valid = decoded.valid & (decoded.values >= low) & (decoded.values <= high)  # excludes NaN, infinity
        sky = self._sky(pair, decoded)
        if sky is not None:
            if self.sky_masks is not None and valid.any() and not (valid & ~sky).any():
                raise NoValidPixel(
                    f"{pair.depth}: no valid pixel outside the sky of sky_masks, "
                    f"{self._sky_files().find(pair)}: remove the pair, or correct the mask"
                )
            valid &= ~sky
        if not valid.any():
            raise NoValidPixel(f"{pair.depth}: no valid pixel {self.range_text()}")
        return Labels(decoded.values, self.unit, valid, sky)

    def valid_range(self) -> tuple[float, float]:
        """Returns the smallest and the largest valid value in the unit of the data set."""
        return (self.min_depth, self.max_depth) if self.unit == "m" else (0.0, _LARGEST)

    def range_text(self) -> str:
        """Returns what is valid, and the remedy if nothing is, for a message."""
        if self.unit != "m":
            return f"({self.unit} 0 or more): remove the pair"
        return f"(between {self.min_depth} and {self.max_depth} m): remove the pair, or correct max_depth"

    def read(self, index: int, convert_images: bool = False) -> LabeledSample:
        """Returns image and labels of pair `index`. Raises ValueError, which names the unusable file."""
        pair = self.pairs[index]
        stored = image = self.stored_image(index)
        if isinstance(image, bytes):
            image = decode_image(image, str(pair.image), convert_images, self.upright)
        labels, sizes = self.labels(index), (image.shape[:2], str(pair.depth))
        shape, what = labels.valid.shape, self.label_word
        orientation.require_aligned(str(pair.image), stored, *sizes, shape, self.upright, what)
        return LabeledSample(self.name(index), image, labels)


def __getattr__(name: str) -> Any:
    """Finds `FolderDepth`, which configurations of users name by this module."""
    if name == "FolderDepth":
        from depthany.data.folder_depth import FolderDepth

        return FolderDepth
    raise AttributeError(f"module {__name__} has no attribute {name}")
