"""Eigen's test images of KITTI, by the list of BTS, with the annotated depth."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmark_trees import IMAGE, write_kitti
from depthany.data.sets.kitti import KITTI, VAL_DRIVES

# As the protocols open it: with a range that cuts nothing.
eigen = partial(KITTI, split="eigen_test", min_depth=1e-6, max_depth=1e6)


def test_lines_without_annotated_depth_are_left_out(tmp_path: Path) -> None:
    write_kitti(tmp_path)
    images = eigen(str(tmp_path))
    assert [images.name(i) for i in range(len(images))] == [
        "2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069",
        "2011_09_26/2011_09_26_drive_0009_sync/image_02/data/0000000016",
    ]
    assert images.left_out == {"without depth in the list": 1}


def test_unit_is_a_256th_of_a_metre(tmp_path: Path) -> None:
    write_kitti(tmp_path)
    labels = eigen(str(tmp_path)).labels(0)
    assert labels.values[0, :3].tolist() == [1, 10, 1 / 256]
    assert labels.disparity[0, :3].tolist() == [1, np.float32(0.1), 256]
    assert labels.valid.sum(1).tolist() == [3, 0, 0, 8, 8, 8]
    assert labels.valid.shape == IMAGE


@pytest.mark.parametrize("folder", ["data_depth_annotated/train", "data_depth_annotated", "train", "gt", ""])
def test_depth_is_found_in_every_known_folder(tmp_path: Path, folder: str) -> None:
    write_kitti(tmp_path, folder)
    assert len(eigen(str(tmp_path))) == 2


def test_depth_is_found_in_a_folder_elsewhere(tmp_path: Path) -> None:
    write_kitti(tmp_path / "raw", "../depth/val")
    assert len(eigen(str(tmp_path / "raw"), depth_root=str(tmp_path / "depth"))) == 2


def test_missing_files_are_counted_and_named(tmp_path: Path) -> None:
    write_kitti(tmp_path)
    for path in (tmp_path / "data_depth_annotated").rglob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match=r"2 file\(s\) of 4 do not exist .*0069\.png, .*0016\.png$"):
        eigen(str(tmp_path))


def test_midas_images_are_in_official_val_drives(tmp_path: Path) -> None:
    write_kitti(tmp_path)  # drive 0002 is one of the official val split, 0009 of train
    images = eigen(str(tmp_path), split="eigen_test_in_val")
    assert [pair.name for pair in images.pairs] == [
        "2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069"
    ]
    assert images.left_out == {"in drives of the official train split": 2}
    assert len(VAL_DRIVES) == 13


def test_list_of_another_form_is_refused(tmp_path: Path) -> None:
    write_kitti(tmp_path)
    other = tmp_path / "monodepth.txt"
    other.write_text("2011_09_26_drive_0002_sync_69\n")
    with pytest.raises(ValueError, match=r"monodepth\.txt, line 1: expected an image and its depth file"):
        eigen(str(tmp_path), list_file=str(other))


def test_image_listed_twice_is_refused(tmp_path: Path) -> None:
    write_kitti(tmp_path)
    path = tmp_path / "eigen_test_files_with_gt.txt"
    path.write_text(path.read_text() * 2)
    with pytest.raises(ValueError, match=r"0000000069 comes twice"):
        eigen(str(tmp_path))


def test_error_without_list_says_where_it_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"eigen_test_files_with_gt\.txt: no such file: .*BTS repository"):
        eigen(str(tmp_path))
    with pytest.raises(ValueError, match="none: no such folder"):
        eigen(str(tmp_path / "none"))
