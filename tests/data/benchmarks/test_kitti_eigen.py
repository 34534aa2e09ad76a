"""KITTI's Eigen list with the annotated depth."""

from pathlib import Path

import numpy as np
import pytest

from benchmark_trees import IMAGE, write_kitti
from depthany.data.benchmarks import KittiEigen


def test_lines_without_annotated_depth_are_left_out_and_nothing_else(tmp_path: Path) -> None:
    write_kitti(tmp_path)
    images = KittiEigen(str(tmp_path))
    assert [images.name(i) for i in range(len(images))] == [
        "2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069",
        "2011_09_26/2011_09_26_drive_0009_sync/image_02/data/0000000016",
    ]


def test_depth_is_stored_in_256ths_of_a_metre_and_0_is_no_return(tmp_path: Path) -> None:
    write_kitti(tmp_path)
    sample = KittiEigen(str(tmp_path)).read(0)
    assert sample.labels.disparity[0, :3].tolist() == [1, np.float32(0.1), 256]
    assert sample.labels.mask.sum(1).tolist() == [3, 0, 0, 8, 8, 8]
    assert sample.labels.mask.shape == IMAGE


@pytest.mark.parametrize("folder", ["data_depth_annotated/train", "data_depth_annotated", "train", "gt", ""])
def test_depth_is_found_wherever_the_archives_were_unpacked(tmp_path: Path, folder: str) -> None:
    write_kitti(tmp_path, folder)
    assert len(KittiEigen(str(tmp_path))) == 2


def test_missing_files_are_counted_and_named_with_the_layout(tmp_path: Path) -> None:
    write_kitti(tmp_path)
    for path in (tmp_path / "data_depth_annotated").rglob("*.png"):
        path.unlink()
    with pytest.raises(
        ValueError, match=r"2 of 4 files are missing, the first: .*0069\.png, .*0016\.png; exp"
    ):
        KittiEigen(str(tmp_path))


def test_a_list_of_another_form_names_the_line(tmp_path: Path) -> None:
    write_kitti(tmp_path)
    other = tmp_path / "monodepth.txt"
    other.write_text("2011_09_26_drive_0002_sync_69\n")
    with pytest.raises(ValueError, match=r"monodepth\.txt, line 1: expected an image and its depth file"):
        KittiEigen(str(tmp_path), str(other))


def test_without_the_list_the_error_says_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read the list of pairs: No such file.* BTS repository"):
        KittiEigen(str(tmp_path))
