"""KITTI with annotated depth: its unit, and which depth belongs to which image."""

from pathlib import Path

import pytest
import set_files as files
from set_files import disparity

from depthany.data.sets.kitti import KITTI

DATE, DRIVE = "2011_09_26", "2011_09_26_drive_0001_sync"


@pytest.fixture
def kitti(tmp_path: Path) -> Path:
    for frame in range(8):
        files.image(tmp_path / f"raw/{DATE}/{DRIVE}/image_02/data/{frame:010d}.png")
    for split, drive, frames in (("train", DRIVE, (5, 6)), ("val", DRIVE.replace("0001", "0002"), (5,))):
        for frame in frames:
            depth = tmp_path / f"depth/{split}/{drive}/proj_depth/groundtruth/image_02/{frame:010d}.png"
            files.png(depth, [[0, 256, 20480], [20481, 65535, 128]])
    files.image(tmp_path / f"raw/{DATE}/{DRIVE.replace('0001', '0002')}/image_02/data/{5:010d}.png")
    return tmp_path


def test_images_without_annotation_are_no_error(kitti: Path) -> None:
    dataset = KITTI(str(kitti / "raw"), depth_root="../depth")
    assert [pair.name[-10:] for pair in dataset.pairs] == ["0000000005", "0000000006"]
    assert disparity(dataset) == [[None, 1, 0.0125], [None, None, 2]]
    assert len(KITTI(str(kitti / "raw"), str(kitti / "depth"), split="all")) == 3


def test_depth_without_its_image_is_named(kitti: Path) -> None:
    (kitti / f"raw/{DATE}/{DRIVE}/image_02/data/0000000006.png").unlink()
    with pytest.raises(ValueError, match=r"1 file.*groundtruth/image_02/0000000006\.png \(no 2011_09_26/"):
        KITTI(str(kitti / "raw"), "../depth")
    with pytest.raises(
        ValueError, match=r"raw/data_depth_annotated: no such folder, and no .*: pass depth_root="
    ):
        KITTI(str(kitti / "raw"))


@pytest.mark.parametrize("suffix", ["", ".png"])
def test_excluded_frame_may_have_its_suffix(kitti: Path, suffix: str) -> None:
    (kitti / "bad.txt").write_text(f"{DATE}/{DRIVE}/image_02/data/0000000005{suffix}\n")
    dataset = KITTI(str(kitti / "raw"), "../depth", exclude_file=str(kitti / "bad.txt"))
    assert [pair.name[-10:] for pair in dataset.pairs] == ["0000000006"]


def test_listed_lines_without_depth_are_counted(kitti: Path) -> None:
    image, depth = f"{DATE}/{DRIVE}/image_02/data", f"{DRIVE}/proj_depth/groundtruth/image_02"
    (kitti / "list.txt").write_text(
        f"{image}/0000000005.png {depth}/0000000005.png 721.5377\n{image}/0000000000.png None 721.5377\n"
    )
    dataset = KITTI(str(kitti / "raw"), "../depth/train", list_file=str(kitti / "list.txt"))
    assert len(dataset) == 1
    assert dataset.left_out == {"without depth in the list": 1}
    assert disparity(dataset)[0] == [None, 1, 0.0125]


IMAGE, DEPTH = f"{DATE}/{DRIVE}/image_02/data", f"{DRIVE}/proj_depth/groundtruth/image_02"
LINES = {  # the frames 5 and 0; 0 has no annotation
    "BTS": f"{IMAGE}/0000000005.png {DEPTH}/0000000005.png 721.5377\n{IMAGE}/0000000000.png None 721.5377",
    "BTS without date": f"{DRIVE}/image_02/data/0000000005.png {DEPTH}/0000000005.png 721.5377",
    "in train": f"{IMAGE}/0000000005.png train/{DEPTH}/0000000005.png",
    "in val, though it is not": f"{IMAGE}/0000000005.png data_depth_annotated/val/{DEPTH}/0000000005.png",
    "below the date": f"{IMAGE}/0000000005.png {DATE}/{DEPTH}/0000000005.png",
    "JPEG": f"{IMAGE}/0000000005.jpg {DEPTH}/0000000005.png",
    "Monodepth": "\n".join(
        f"{IMAGE}/{n:010d}.jpg {IMAGE.replace('02/data', '03/data')}/{n:010d}.jpg" for n in (5, 0)
    ),
    "Monodepth2": f"{DATE}/{DRIVE} 0000000005 l\n{DATE}/{DRIVE} 0 l",
    "images alone": f"{IMAGE}/0000000005.png\n{IMAGE}/0000000000.png",
}
PLACES = ["data_depth_annotated/train", "data_depth_annotated", "train", "gt", "", DATE]


@pytest.mark.parametrize("form", LINES)
def test_every_known_list_finds_its_depth(kitti: Path, form: str) -> None:
    (kitti / "depth").rename(kitti / "raw/data_depth_annotated")
    (kitti / "list.txt").write_text(LINES[form] + "\n")
    dataset = KITTI(str(kitti / "raw"), list_file=str(kitti / "list.txt"))
    assert [pair.name for pair in dataset.pairs] == [f"{IMAGE}/0000000005"]
    assert disparity(dataset) == [[None, 1, 0.0125], [None, None, 2]]
    assert sum(dataset.left_out.values()) == len(LINES[form].splitlines()) - 1


@pytest.mark.parametrize("place", PLACES)
def test_official_list_finds_depth_in_every_place(kitti: Path, place: str) -> None:
    (kitti / "raw" / place).mkdir(parents=True, exist_ok=True)
    drive = kitti / "raw" / place / DRIVE
    if place == DATE:
        (kitti / "depth/train" / DRIVE / "proj_depth").rename(drive / "proj_depth")
    else:
        (kitti / "depth/train" / DRIVE).rename(drive)
    (kitti / "list.txt").write_text(LINES["BTS"])
    listed = KITTI(str(kitti / "raw"), list_file=str(kitti / "list.txt"))
    assert [pair.depth for pair in listed.pairs] == [
        drive / DEPTH.removeprefix(DRIVE + "/") / "0000000005.png"
    ]
    assert len(KITTI(str(kitti / "raw"))) == 2, "and so does the split without a list"
    with pytest.raises(ValueError, match="no pair of image and depth found"):
        KITTI(str(kitti / "raw"), split="val")


def test_merged_drives_are_split_as_officially(kitti: Path) -> None:
    val = DRIVE.replace("0001", "0002")
    (kitti / "depth/train" / DRIVE).rename(kitti / "depth" / DRIVE)
    (kitti / "depth/val" / val).rename(kitti / "depth" / val)
    for split, count in (("train", 2), ("val", 1), ("all", 3)):
        assert len(KITTI(str(kitti / "raw"), "../depth", split=split)) == count


def test_images_converted_to_jpeg_are_found(kitti: Path) -> None:
    for path in (kitti / "raw").rglob("image_02/data/*.png"):
        files.image(path.with_suffix(".jpg"))
        path.unlink()
    assert [pair.image.suffix for pair in KITTI(str(kitti / "raw"), "../depth").pairs] == [".jpg", ".jpg"]
