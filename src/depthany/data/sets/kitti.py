"""KITTI with annotated depth (Uhrig et al. 2017, arXiv 1708.06500), for training and for Eigen's test."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from depthany.data.depth_files import read_depth_16
from depthany.data.labeled import Decoded, PairedDepth
from depthany.data.pairs import Pair, Pairs, missing, read_columns, require_pair, require_unique, walk
from depthany.system.choices import require_choice, require_list

EIGEN_LIST = "eigen_test_files_with_gt.txt"
EIGEN_SPLITS = ("eigen_test", "eigen_test_in_val")
SPLITS = ("train", "val", "all", *EIGEN_SPLITS)
# The drives below val/ in the official archive of annotated depth; the others are below train/.
VAL_DRIVES = frozenset(
    f"{drive}_sync"
    for drive in (
        *(f"2011_09_26_drive_{n:04d}" for n in (2, 5, 13, 20, 23, 36, 79, 95, 113)),
        *("2011_09_28_drive_0037", "2011_09_29_drive_0026", "2011_09_30_drive_0016", "2011_10_03_drive_0047"),
    )
)
_DRIVE = r"(\d{4}_\d\d_\d\d_drive_\d+_sync)"
_DEPTH_FOLDER = re.compile(rf"(?:(.*)/)?{_DRIVE}/proj_depth/groundtruth/(image_0\d)")
_DRIVE_PATH = re.compile(rf"(?:.*/)?{_DRIVE}")
_IMAGE = re.compile(rf"(?:.*/)?{_DRIVE}/(image_0\d)/data/(\d+)\.(?:png|jpg)")
_NOT_DEPTH = r"velodyne_raw|velodyne_points|oxts|data"  # names of large folders that hold no annotated depth
_SIDES = {"l": "image_02", "r": "image_03", "2": "image_02", "3": "image_03"}


class KITTI(PairedDepth):
    """Raw `<date>/<drive>/image_02/data/N.png` (or .jpg) with annotated
    `<split>/<drive>/proj_depth/groundtruth/image_02/N.png`: 16 bits, metres = v / 256, 0 = not measured.

    The first and last five frames of a drive have no annotation, which is not an error. A name is the path of
    the image without suffix.

    A list names images and depth maps by drive, camera and number. Depth is found where the drive lies below
    `depth_root`, whatever folders the list puts in front; images may lie below their date though the list
    leaves it out, and be .jpg instead of .png. Lists without depth, such as those of Monodepth
    (`<image> <right image>`) and Monodepth2 (`<date>/<drive> N l`), take the annotated depth of each image;
    lines without one are left out and counted.

    `eigen_test` are the 652 of Eigen's 697 test images (Eigen et al. 2014, arXiv 1406.2283) that have
    annotated depth; the list says `None` for the others. `eigen_test_in_val` are the 161 of them in drives of
    the official val split, on which MiDaS is scored (arXiv 1907.01341, supplement C).

    Args:
        root: folder of the raw data, which holds the dates.
        depth_root: folder of the annotated depth, relative to `root` or absolute. None =
            `data_depth_annotated` if it exists, else anywhere below `root`, such as `train` and `val` beside
            the dates.
        split: `train`, `val`, `all`, `eigen_test` or `eigen_test_in_val`. A drive below a folder `train` or
            `val` belongs to that split, any other drive to its split in the official archive.
        cameras: 2 = left, 3 = right; not for lists.
        list_file: see `PairedDepth`. For Eigen's test images None = `eigen_test_files_with_gt.txt` in root.
        common: see `PairedDepth`.
    """

    def __init__(
        self,
        root: str,
        depth_root: str | None = None,
        split: str = "train",
        cameras: Sequence[int] = (2, 3),
        list_file: str | None = None,
        **common: Any,
    ) -> None:
        require_choice("split of KITTI", split, SPLITS)
        require_list("cameras", cameras)
        if split in EIGEN_SPLITS and list_file is None:
            list_file = os.path.join(root, EIGEN_LIST)
            if os.path.isdir(root) and not os.path.isfile(list_file):
                raise ValueError(
                    f"{list_file}: no such file: put the list of the BTS repository there "
                    "(github.com/cleinc/bts, train_test_inputs/), or pass list_file="
                )
        self.depth_root = os.path.abspath(os.path.join(root, depth_root or "data_depth_annotated"))
        self.searches_root = depth_root is None  # for depth that is not in the usual folder
        self.split, self.cameras = split, {f"image_0{number}" for number in cameras}
        self._listings = dict[str, frozenset[str]]()
        super().__init__(root, list_file=list_file, **common)
        self._listings.clear()  # of all frames
        if split in EIGEN_SPLITS:
            require_unique(pair.name for pair in self.pairs)

    def find(self) -> tuple[Pairs, list[str]]:
        folders = self._in_depth_root or (self._in_root if self.searches_root else {})
        if not folders:
            exists = os.path.isdir(self.depth_root)
            what = "no <drive>/proj_depth/groundtruth below it" if exists else "no such folder"
            also = f", and no annotated depth elsewhere in {self.root}" if self.searches_root else ""
            raise ValueError(
                f"{self.depth_root}: {what}{also}: pass depth_root=, the folder that holds train and val"
            )
        rows = list[tuple[str, str]]()
        for (drive, camera), folder in folders.items():
            if camera in self.cameras and self.split in ("all", _split_of(drive, folder)):
                numbers = (name[:-4] for name in sorted(self._listing(folder)) if name.endswith(".png"))
                rows += [(self._image(drive, camera, n), f"{folder}/{n}.png") for n in numbers]
        absent = set(missing(self.root, (image for image, _ in rows)))
        whole = self.pairs_of(row for row in rows if row[0] not in absent)
        return whole, sorted(f"{depth} (no {image})" for image, depth in rows if image in absent)

    def pairs_of(self, rows: Iterable[tuple[str, str]]) -> Pairs:
        return Pairs(self.root, ((os.path.splitext(image)[0], image, depth) for image, depth in rows))

    def listed_rows(self, list_file: Path) -> list[tuple[str, str]]:
        rows = list[tuple[str, str]]()
        for number, columns in read_columns(list_file):
            if derived := _without_depth(columns):
                image, depth = self.locate(*derived)
                if os.path.basename(depth) not in self._listing(os.path.dirname(depth)):
                    self.count_left_out("of the list without annotated depth", 1)
                    continue
                rows.append((image, depth))
            else:
                rows.append(require_pair(list_file, number, columns))
        if self.split != "eigen_test_in_val":
            return rows
        kept = [row for row in rows if (parts := _IMAGE.fullmatch(row[0])) and parts[1] in VAL_DRIVES]
        self.count_left_out("in drives of the official train split", len(rows) - len(kept))
        return kept

    def locate(self, image: str, depth: str) -> tuple[str, str]:
        folder, file = os.path.split(depth)
        if place := _DEPTH_FOLDER.fullmatch(folder):
            key = place[2], place[3]
            found = self._in_depth_root.get(key)
            if found is None and self.searches_root:
                found = self._in_root.get(key)
            folder = found or os.path.join(self.depth_root, folder)
        return self._existing(image), os.path.join(folder, file)

    def decode(self, pair: Pair) -> Decoded:
        stored = read_depth_16(pair.depth)
        return Decoded(stored / np.float32(256), stored > 0)

    @cached_property
    def _in_depth_root(self) -> Mapping[tuple[str, str], str]:
        return _depth_folders(self.depth_root) if os.path.isdir(self.depth_root) else {}

    @cached_property
    def _in_root(self) -> Mapping[tuple[str, str], str]:
        return _depth_folders(os.path.abspath(self.root))

    def _image(self, drive: str, camera: str, number: str) -> str:
        """Returns the path of a frame below the root."""
        return self._existing(f"{drive[:10]}/{drive}/{camera}/data/{number}.png")

    def _existing(self, image: str) -> str:
        """Returns the path of an image below the root, with its date and with the suffix that is on disk."""
        if (parts := _IMAGE.fullmatch(image)) is None:
            return image
        for folder in (os.path.dirname(image), f"{parts[1][:10]}/{parts[1]}/{parts[2]}/data"):
            names = self._listing(os.path.join(self.root, folder))
            for name in (os.path.basename(image), f"{parts[3]}.png", f"{parts[3]}.jpg"):
                if name in names:
                    return f"{folder}/{name}"
        return image

    def _listing(self, folder: str) -> frozenset[str]:
        """Returns the names in a folder, which is listed once; none if it does not exist."""
        if folder not in self._listings:
            names = os.listdir(folder) if os.path.isdir(folder) else ()
            self._listings[folder] = frozenset(names)
        return self._listings[folder]


def _depth_folders(root: str) -> dict[tuple[str, str], str]:
    """Returns the folders of annotated depth below a folder, by drive and camera, in sorted order."""
    found = dict[tuple[str, str], str]()
    for folder, _ in walk(Path(root), skip=_NOT_DEPTH):
        if place := _DEPTH_FOLDER.fullmatch(folder):
            found.setdefault((place[2], place[3]), f"{root}/{folder}")
    return found


def _split_of(drive: str, folder: str) -> str:
    """Returns `train` or `val`, by a folder of this name around the drive, or else by the official split."""
    around = folder[: folder.index(f"/{drive}/")].rpartition("/")[2]
    return around if around in ("train", "val") else "val" if drive in VAL_DRIVES else "train"


def _without_depth(columns: Sequence[str]) -> tuple[str, str] | None:
    """Returns image and annotated depth of a line that names no depth (Monodepth, Monodepth2, or an image
    alone); None for other lines.
    """
    drive, *rest = columns
    if len(rest) == 2 and rest[0].isdecimal() and rest[1] in _SIDES and _DRIVE_PATH.fullmatch(drive):
        drive, camera, number = drive.rpartition("/")[2], _SIDES[rest[1]], f"{int(rest[0]):010d}"
        image = f"{drive[:10]}/{drive}/{camera}/data/{number}.png"
    elif _IMAGE.fullmatch(columns[0]) and (len(columns) == 1 or _IMAGE.fullmatch(columns[1])):
        image = columns[0]
    else:
        return None
    parts = _IMAGE.fullmatch(image)
    assert parts is not None, image
    return image, f"{parts[1]}/proj_depth/groundtruth/{parts[2]}/{parts[3]}.png"
