"""Labels that do not look like what their settings say."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from depthany.data.folder_depth import FolderDepth
from depthany.data.plausible import doubts, label_notes, look_at
from depthany.data.sets.kitti import KITTI


def folder(root: Path, *stored: np.ndarray, **settings) -> FolderDepth:
    for name in ("images", "depth"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for i, plane in enumerate(stored):
        Image.new("RGB", plane.shape[1::-1]).save(root / f"images/{i}.png")
        if plane.dtype.kind == "f":
            np.save(root / f"depth/{i}.npy", plane)
        else:
            Image.fromarray(plane).save(root / f"depth/{i}.png")
    return FolderDepth(str(root), **settings)


def room(scale: float, dtype: type) -> np.ndarray:
    """Depth from 0.2 to 3 m in a unit; its median is 1.6 m."""
    return np.linspace(0.2 * scale, 3 * scale, 101).astype(dtype).reshape(1, -1)


def said(dataset: FolderDepth, range_m: tuple[float, float] | None = None) -> list[str]:
    return doubts(dataset, look_at(dataset), range_m)


@pytest.mark.parametrize(
    "scale, dtype, depth_scale, expected",
    [
        (1, np.float32, 1000, "0.0016 m, nearer than 5 cm .*look like metres: depth_scale=1$"),
        (1000, np.float32, None, "1.6e.03 m, farther than max_depth=80 .*millimetres: depth_scale=1000$"),
        (1000, np.uint16, 1, "stored: 1600 at depth_scale=1.: .* millimetres: depth_scale=1000$"),
        (100, np.uint16, 5000, "0.032 m, nearer than 5 cm"),
        (1e7, np.float32, None, "no usual unit puts it into the range"),
    ],
)
def test_wrong_unit_is_said_with_its_likely_cause(
    tmp_path: Path, scale: float, dtype: type, depth_scale: float | None, expected: str
) -> None:
    (line,) = said(folder(tmp_path, room(scale, dtype), depth_scale=depth_scale))
    assert line.startswith("the median of the known depth is ")
    assert re.search(expected, line), line


def test_right_unit_is_not_doubted(tmp_path: Path) -> None:
    assert said(folder(tmp_path / "m", room(1, np.float32))) == []
    assert said(folder(tmp_path / "mm", room(1000, np.uint16), depth_scale=1000)) == []
    assert said(folder(tmp_path / "tum", room(5000, np.uint16), depth_scale=5000)) == []


def test_much_depth_out_of_range_is_said(tmp_path: Path) -> None:
    dataset = folder(tmp_path, room(1, np.float32), max_depth=2, min_depth=0.5)
    (line,) = said(dataset)
    assert "47% of the known depth is out of range" in line
    assert "11% nearer than min_depth=0.5, 36% farther than max_depth=2; the median is 1.6 m" in line
    assert said(dataset, (0.5, 2)) == [], "a protocol may cut, unless half of the truth is cut"
    assert "farther than max_depth=1" in said(dataset, (0.5, 1))[0]


def test_8_bits_and_mixed_types_are_said(tmp_path: Path) -> None:
    small = folder(tmp_path / "8", room(80, np.uint8), depth_scale=80)
    assert "1 of 1 depth maps have 8 bits" in said(small)[0]
    mixed = folder(tmp_path / "m", room(1000, np.uint16), room(1000, np.float32), depth_scale=1000)
    assert "share depth_scale=1000: 1 float32, 1 uint16" in said(mixed)[0]


def test_ends_of_number_ranges_are_said(tmp_path: Path) -> None:
    relative = folder(tmp_path / "1", np.linspace(0, 1, 50, dtype=np.float32)[None])
    assert "exactly 1: values scaled to 0..1" in said(relative)[0]
    sky = np.concatenate([room(1000, np.uint16), np.full((1, 9), 65535, np.uint16)], 1)
    assert "sky_value=65535" in said(folder(tmp_path / "s", sky, depth_scale=1000))[0]
    assert said(folder(tmp_path / "s", sky, depth_scale=1000, sky_value=65535)) == []


def test_disparity_has_no_unit_to_doubt(tmp_path: Path) -> None:
    assert said(folder(tmp_path, room(80, np.uint8), quantity="disparity")) == []


def test_look_counts_files_and_resized_ones(tmp_path: Path) -> None:
    dataset = folder(
        tmp_path, *[room(1000, np.uint16)] * 40, depth_scale=1000, resize_depth="nearest", max_depth=10
    )
    Image.new("RGB", (202, 2)).save(tmp_path / "images/0.png")
    (tmp_path / "depth/5.png").write_text("damaged")
    seen = look_at(dataset)
    assert (seen.files, seen.known.total) == (7, 6 * 101 + 404)
    assert seen.notes() == ["1 of 7 depth maps read are resized to their image: 101x1 to 202x2"]


def test_official_files_in_another_unit_are_said(tmp_path: Path) -> None:
    drive = "2011_09_26_drive_0001_sync"
    image = tmp_path / f"2011_09_26/{drive}/image_02/data/5.png"
    depth = tmp_path / f"data_depth_annotated/train/{drive}/proj_depth/groundtruth/image_02/5.png"
    for path in (image, depth):
        path.parent.mkdir(parents=True)
    Image.new("RGB", (101, 1)).save(image)
    Image.fromarray(room(4, np.uint16)).save(depth)  # metres * 4 instead of * 256
    (line,) = said(KITTI(str(tmp_path)))
    assert "nearer than 5 cm: are these the files of the data set, as it publishes them?" in line


def tilted(nearest: float, farthest: float) -> np.ndarray:
    """Float values from `farthest` in the upper row to `nearest` in the lower one."""
    return np.repeat(np.linspace(farthest, nearest, 30, dtype=np.float32)[:, None], 4, 1)


def test_table_shows_depth_of_metric_sets(tmp_path: Path) -> None:
    plane = tilted(1, 11)
    plane[:6] = 0
    dataset = folder(tmp_path, *[plane] * 5, max_depth=8)
    warnings, lines = label_notes({"mine": dataset, "val": dataset}, {"mine": 8.0})
    assert len(lines) == 2
    assert " ".join(lines[0].split()) == "metres, of some files 1 % 10 % 50 % 90 % 99 % known out of range"
    found = lines[1].split()
    assert found[:4] == ["mine,", "5", "of", "5"]
    assert [float(cell) for cell in found[4:9]] == pytest.approx([1, 1.69, 4.79, 8.24, 8.93], rel=0.02)
    assert found[9:] == ["80%", "12.5%", "of", "0.001", "to", "8"]
    assert warnings == []
    assert label_notes({"mine": dataset})[1] == []


def test_disparity_and_empty_range_are_said(tmp_path: Path) -> None:
    upside_down = folder(tmp_path / "d", *[tilted(11, 1)] * 5, max_depth=12)
    (line,), _ = label_notes({"mine": upside_down}, {"mine": 12.0})
    assert line.startswith("mine: in 5 of 5 images the values are larger in the lower third")
    assert line.endswith("is this disparity, not depth? (quantity=disparity, which has no metres)")
    near = {"mine": folder(tmp_path / "r", *[tilted(1, 11)] * 3)}
    (line,), _ = label_notes(near, {"mine": 80.0})
    assert "99 % of the depth is nearer than 11 m, but the model learns up to 80 m: set max_depth" in line
    assert label_notes(near, {"mine": 12.0})[0] == [], "max_depth of the set is 80, but stage.far_m is not"


def test_sparse_depth_in_random_crops_is_said(tmp_path: Path) -> None:
    plane = tilted(1, 11)
    plane[:, 1:] *= np.arange(30)[:, None] % 4 == 0  # 7 in 16 pixels, and one
    plane[np.arange(30) % 3 > 0] = 0
    sparse = {"mine": folder(tmp_path, *[plane] * 3, max_depth=12)}
    assert (plane > 0).mean() < 0.2
    (line,), _ = label_notes(sparse, {"mine": 12.0})
    assert line.startswith("mine: only ") and line.endswith("set stage.views.view=whole")
    assert label_notes(sparse, {"mine": 12.0}, is_resized=False)[0] == label_notes(sparse)[0] == []
