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
    with pytest.raises(ValueError, match=r"raw/data_depth_annotated: no such folder: pass depth_root="):
        KITTI(str(kitti / "raw"))


def test_listed_lines_without_depth_are_counted(kitti: Path) -> None:
    image, depth = f"{DATE}/{DRIVE}/image_02/data", f"{DRIVE}/proj_depth/groundtruth/image_02"
    (kitti / "list.txt").write_text(
        f"{image}/0000000005.png {depth}/0000000005.png 721.5377\n{image}/0000000000.png None 721.5377\n"
    )
    dataset = KITTI(str(kitti / "raw"), "../depth/train", list_file=str(kitti / "list.txt"))
    assert len(dataset) == 1
    assert dataset.left_out == {"without depth in the list": 1}
    assert disparity(dataset)[0] == [None, 1, 0.0125]
