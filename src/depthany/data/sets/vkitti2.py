"""Virtual KITTI 2 (Cabon et al. 2020, arXiv 2001.10773), for training and for Marigold's validation."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from depthany.data.depth_files import read_depth_16
from depthany.data.labeled import Decoded
from depthany.data.layouts import Layout, LayoutDepth
from depthany.data.pairs import Pair, read_columns
from depthany.system.choices import require_list

SKY_CM = 65535
CLIP = "(?:(?:(?:.*/)?([^/]+)/)?([^/]+)/)?"  # scene and variant, at any depth below the root
_FRAME = re.compile(r"(?:.*/)?([^/]+)/([^/]+)/frames/rgb/(Camera_\d+)/rgb_(\d+)\.jpg")
_FROM_SCENE = re.compile(r"(?:.*/)?([^/]+/[^/]+/frames/.+)")


def frame_of(image: str) -> tuple[str, ...] | None:
    """Returns scene, variant, camera and number of an image; None if its path has another form."""
    match = _FRAME.fullmatch(image)
    return None if match is None else match.groups()


def below(root: Path, path: str) -> str:
    """Returns the path of a list from its scene on, if it is there only so: published lists begin with the
    folders of their authors.
    """
    match = _FROM_SCENE.fullmatch(path)
    is_moved = match is not None and not (root / path).exists() and (root / match[1]).exists()
    return match[1] if match is not None and is_moved else path


def listed_frames(path: Path) -> frozenset[tuple[str, ...]]:
    """Returns the frames that a list names. Raises ValueError if it cannot be read or has another form."""
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file: put the list there, such as Depth Anything V2's "
            "metric_depth/dataset/splits/vkitti2/train.txt, or pass except_list="
        )
    frames = set[tuple[str, ...]]()
    for number, columns in read_columns(path):
        if (frame := frame_of(columns[0])) is None:
            raise ValueError(
                f"{path}, line {number}: expected SceneXX/<variant>/frames/rgb/Camera_C/rgb_N.jpg, "
                f"got {columns[0]!r}"
            )
        frames.add(frame)
    return frozenset(frames)


class VirtualKITTI2(LayoutDepth):
    """`SceneXX/<variant>/frames/rgb/Camera_C/rgb_N.jpg` with `.../depth/Camera_C/depth_N.png`
    (vkitti_2.0.3_rgb.tar and vkitti_2.0.3_depth.tar of Naver Labs Europe), in one folder or two below `root`.

    The two archives may be unpacked into one folder or into two of any name, such as `vkitti_2.0.3_rgb` and
    `vkitti_2.0.3_depth`, or `rgb` and `depth` as for Marigold: frames belong together by scene, variant,
    camera and number. 16-bit depth in centimetres. 65535 is sky, not 655.35 m.

    Args:
        root: folder of the scenes, at any depth.
        cameras: 0 = left, 1 = right. The 20K images of the paper are about one camera (21,260 of 42,520). Not
            read with `list_file`.
        scenes: such as `Scene01`; None = all five.
        variants: such as `clone`, `fog`, `15-deg-left`; None = all ten.
        depth_root: folder of the scenes with depth, relative to `root` or absolute; None = `root`.
        except_list: list of frames that are left out, relative to `root` or absolute; None = there is none. A
            line begins with an image; scene, variant, camera and number count, whatever folders are in front.
            In `list_file`, too, other folders may be in front of the scene.
        common: see `PairedDepth`.
    """

    def __init__(
        self,
        root: str,
        cameras: Sequence[int] = (0,),
        scenes: Sequence[str] | None = None,
        variants: Sequence[str] | None = None,
        depth_root: str | None = None,
        except_list: str | None = None,
        **common: Any,
    ) -> None:
        for key, value in (("cameras", cameras), ("scenes", scenes), ("variants", variants)):
            require_list(key, value)
        self.scenes = None if scenes is None else frozenset(scenes)
        self.variants = None if variants is None else frozenset(variants)
        self.depth_root = None if depth_root is None else Path(root, depth_root)
        if self.depth_root is not None and not self.depth_root.is_dir():
            raise ValueError(f"depth_root={depth_root}: no such folder (looked for {self.depth_root})")
        self.excepted = None if except_list is None else listed_frames(Path(root, except_list))
        self.except_list = except_list
        camera = "(Camera_(?:" + "|".join(str(number) for number in cameras) + "))"
        self.layout = Layout(
            CLIP + f"frames/rgb/{camera}",
            r"rgb_(\d+)\.jpg",
            CLIP + f"frames/depth/{camera}",
            r"depth_(\d+)\.png",
            skip="classSegmentation|instanceSegmentation|forwardFlow|backwardFlow|(forward|backward)SceneFlow|normal",
        )
        super().__init__(root, **common)

    def find(self) -> tuple[Sequence[Pair], list[str]]:
        rows, unpaired = self.layout.find(self.root, self.depth_root)
        return self.pairs_of(self.keep(rows)), unpaired

    def locate(self, image: str, depth: str) -> tuple[str, str]:
        image, depth = below(self.root, image), below(self.depth_root or self.root, depth)
        return image, depth if self.depth_root is None else os.path.join(self.depth_root.absolute(), depth)

    def keep(self, rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
        for what, wanted in (("scenes", self.scenes), ("variants", self.variants)):
            if wanted is not None:
                kept = [row for row in rows if not wanted.isdisjoint(row[0].split("/"))]
                self.count_left_out(f"of other {what}", len(rows) - len(kept))
                rows = kept
        if self.excepted is not None:
            kept = [row for row in rows if frame_of(row[0]) not in self.excepted]
            if rows and len(kept) == len(rows):
                raise ValueError(
                    f"except_list={self.except_list} names no frame below {self.root}, such as {rows[0][0]}: "
                    "root must hold the folders of the scenes, SceneXX/<variant>/frames/..."
                )
            self.count_left_out(f"named in {self.except_list}", len(rows) - len(kept))
            rows = kept
        return rows

    keep_listed = keep

    def decode(self, pair: Pair) -> Decoded:
        depth_cm = read_depth_16(pair.depth)
        return Decoded(depth_cm / np.float32(100), depth_cm > 0, depth_cm == SKY_CM)
