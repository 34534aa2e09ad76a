"""Hypersim (Roberts et al. 2021, arXiv 2011.02523): rendered rooms."""

import csv
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depthany.data.depth_files import read_depth
from depthany.data.labeled import Decoded
from depthany.data.layouts import ANYWHERE, Layout, LayoutDepth
from depthany.data.pairs import Pair
from depthany.system.choices import require_choice
from depthany.system.packages import reason

SPLITS = ("train", "val", "test", "all")
MISSING = ("sky",)  # what a pixel without surface is, besides unknown
FOCAL_PX, WIDTH, HEIGHT = 886.81, 1024, 768  # ml-hypersim#9
_FRAME = re.compile(r"(?:.*/)?(ai_\d+_\d+)/images/scene_(cam_\d+)_final_preview/frame\.(\d+)\.tonemap\.jpg")
CAMERA_CSV, PINHOLE_CHOICE = "metadata_camera_parameters.csv", "pinhole"
NO_CAMERAS = (
    f"no {CAMERA_CSV} in root: the depth of all scenes is computed with one pinhole camera of {FOCAL_PX} px, "
    "which is off by more than 1 % in 146 of the table's 482 scenes, by 15 % at worst: put the table of "
    "ml-hypersim (contrib/mikeroberts3000) there, or pass camera_csv=FILE, or camera_csv="
    f"{PINHOLE_CHOICE} to choose the pinhole"
)
Ray = tuple[float, ...]  # a 3x3 matrix by rows: maps (u, v, 1), u right and v up in [-1, 1], to a ray
PINHOLE: Ray = (WIDTH / 2 / FOCAL_PX, 0, 0, 0, HEIGHT / 2 / FOCAL_PX, 0, 0, 0, -1)


class Hypersim(LayoutDepth):
    """`ai_VVV_NNN/images/scene_cam_XX_final_preview/frame.IIII.tonemap.jpg` with
    `scene_cam_XX_geometry_hdf5/frame.IIII.depth_meters.hdf5`, dataset `dataset`.

    The files hold the distance to the centre of the camera in metres (ml-hypersim#9). It is multiplied by the
    cosine between the ray of the pixel and the optical axis, which makes it depth. NaN is a ray that hits
    nothing, such as one through a window.

    Args:
        root: folder of the scenes, at any depth.
        split: `train`, `val` or `test` of the official split, without the frames that it excludes; or `all`.
            Not read with `list_file`, which is a split of its own.
        split_csv: metadata_images_split_scene_v1.csv of ml-hypersim; None = in `root`. Not read for `all`.
        camera_csv: metadata_camera_parameters.csv of ml-hypersim. Its `M_cam_from_uv` describes the tilted
            and shifted lenses of some scenes (ml-hypersim#24, #79). None = in `root`, with a warning if it is
            missing. `pinhole` = a pinhole camera of 886.81 px for all scenes, as in Depth Anything V2's
            metric code.
        missing: `sky` takes NaN as sky, disparity 0; None as unknown. Neither Depth Anything paper says.
        common: see `PairedDepth`.

    Attributes:
        warnings: lines for the user, such as that the cameras are not known.
    """

    layout = Layout(
        ANYWHERE + r"(ai_\d+_\d+)/images/scene_(cam_\d+)_final_preview",
        r"frame\.(\d+)\.tonemap\.jpg",
        ANYWHERE + r"(ai_\d+_\d+)/images/scene_(cam_\d+)_geometry_hdf5",
        r"frame\.(\d+)\.depth_meters\.hdf5",
        skip=r"_detail|scene_cam_\d+_(final_hdf5|geometry_preview)",
    )

    def __init__(
        self,
        root: str,
        split: str = "train",
        split_csv: str | None = None,
        camera_csv: str | None = None,
        missing: str | None = None,
        **common: Any,
    ) -> None:
        require_choice("split of Hypersim", split, SPLITS)
        if missing is not None:
            require_choice("missing of Hypersim", missing, MISSING)
        self.missing = missing
        self.split = split
        self.split_csv = Path(split_csv) if split_csv else Path(root) / "metadata_images_split_scene_v1.csv"
        in_root = Path(root) / CAMERA_CSV
        if camera_csv is None and in_root.is_file():
            camera_csv = str(in_root)
        self.camera_csv = None if camera_csv == PINHOLE_CHOICE else camera_csv
        self.rays = {} if self.camera_csv is None else _read_rays(Path(self.camera_csv))
        super().__init__(root, **common)
        if camera_csv is None:
            self.warnings.insert(0, NO_CAMERAS)

    def keep(self, rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
        if self.split == "all":
            return rows
        wanted = {
            (row["scene_name"], row["camera_name"], int(row["frame_id"]))
            for row in _read_csv(
                self.split_csv, ("scene_name", "camera_name", "frame_id", "split_partition_name")
            )
            if row["split_partition_name"] == self.split
        }
        kept = [row for row in rows if _frame(row[0]) in wanted]
        self.count_left_out(f"not in the split {self.split}", len(rows) - len(kept))
        return kept

    def decode(self, pair: Pair) -> Decoded:
        distance_m = read_depth(pair.depth, "dataset")
        ray = PINHOLE
        if self.camera_csv is not None:
            scene = pair.depth.parents[2].name
            if scene not in self.rays:
                raise ValueError(f"{pair.depth}: {self.camera_csv} has no line for scene {scene}")
            ray = self.rays[scene]
        depth_m = distance_m * cosine(*distance_m.shape, ray)
        hit = np.isfinite(depth_m)
        return Decoded(depth_m, hit, ~hit if self.missing == "sky" else None)


@lru_cache(maxsize=16)
def cosine(height: int, width: int, ray: Ray) -> NDArray[np.float32]:
    """Returns [height width] the ratio of depth to distance, for the ray through the centre of each pixel."""
    u = (2 * np.arange(width) + 1) / width - 1
    v = 1 - (2 * np.arange(height)[:, None] + 1) / height
    x, y, z = (ray[3 * i] * u + ray[3 * i + 1] * v + ray[3 * i + 2] for i in range(3))
    return (-z / np.sqrt(x * x + y * y + z * z)).astype(np.float32)  # the camera looks along -z


def _frame(image: str) -> tuple[str, str, int]:
    match = _FRAME.fullmatch(image)
    assert match is not None, image  # the layout matched it
    return match[1], match[2], int(match[3])


def _read_rays(path: Path) -> dict[str, Ray]:
    """Returns M_cam_from_uv of each scene."""
    columns = tuple(f"M_cam_from_uv_{i}{j}" for i in range(3) for j in range(3))
    rows = _read_csv(path, ("scene_name", *columns))
    return {row["scene_name"]: tuple(float(row[name]) for name in columns) for row in rows}


def _read_csv(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Returns the rows of a table. Raises ValueError if it cannot be read or lacks one of the columns."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot read Hypersim's table: {reason(error)}") from None
    absent = [name for name in columns if not rows or name not in rows[0]]
    if absent:
        raise ValueError(f"{path}: expected columns {', '.join(columns)}; missing {', '.join(absent)}")
    return rows
