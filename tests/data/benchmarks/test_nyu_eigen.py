"""NYU Depth V2's test images, from MATLAB files and from PNGs."""

import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

from benchmark_trees import IMAGE, write_nyu_mat, write_nyu_png
from depthany.data.benchmarks import nyu_eigen


def test_numbers_of_splits_count_from_1_and_the_stored_axes_are_reversed(tmp_path: Path) -> None:
    write_nyu_mat(tmp_path)
    images = nyu_eigen(str(tmp_path))
    assert [images.name(i) for i in range(len(images))] == ["kitchen_0002/rgb_0002", "kitchen_0005/rgb_0005"]
    sample = images.read(0)
    assert sample.image.shape == (*IMAGE, 3)
    assert sample.image[0, 1].tolist() == [2, 0, 0]  # row 0, column 1
    assert sample.image.sum() == 2


def test_raw_depth_has_holes_where_filled_depth_has_numbers(tmp_path: Path) -> None:
    write_nyu_mat(tmp_path)
    raw, filled = (nyu_eigen(str(tmp_path), depth).read(1) for depth in ("raw", "filled"))
    hole = np.zeros(IMAGE, bool)
    hole[0, 1] = True
    assert (raw.labels.mask == ~hole).all()
    assert filled.labels.mask.all()
    assert (filled.labels.disparity == np.float32(1 / 5)).all()


def test_pngs_of_marigold_and_the_mat_give_the_same_name_and_depth(tmp_path: Path) -> None:
    write_nyu_mat(tmp_path / "mat")
    write_nyu_png(tmp_path / "png")
    for depth in ("raw", "filled"):
        mat, png = (nyu_eigen(str(tmp_path / layout), depth) for layout in ("mat", "png"))
        assert mat.name(0) == png.name(0)
        assert (mat.labels(0).disparity == png.labels(0).disparity).all()
        assert (mat.labels(0).mask == png.labels(0).mask).all()


def test_the_reader_of_the_mat_can_be_handed_to_another_process(tmp_path: Path) -> None:
    write_nyu_mat(tmp_path)
    there = pickle.loads(pickle.dumps(nyu_eigen(str(tmp_path))))
    assert there.read(1).image[0, 1, 0] == 5


def test_a_split_that_counts_beyond_the_images_is_refused(tmp_path: Path) -> None:
    write_nyu_mat(tmp_path, count=5, test=(1, 6))
    with pytest.raises(ValueError, match=r"splits\.mat: names frames 1 to 6, .* has 5;"):
        nyu_eigen(str(tmp_path))


def test_one_of_the_two_files_alone_names_the_other(tmp_path: Path) -> None:
    write_nyu_mat(tmp_path)
    (tmp_path / "splits.mat").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 files are missing, the first: splits\.mat; expected"):
        nyu_eigen(str(tmp_path))


def test_a_mat_file_with_other_contents_is_an_error_that_names_it(tmp_path: Path) -> None:
    write_nyu_mat(tmp_path)
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "a") as file:
        del file["scenes"]
    with pytest.raises(ValueError, match=r"labeled\.mat: cannot read scenes"):
        nyu_eigen(str(tmp_path))


def test_another_folder_is_told_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no pair of image and depth .*; expected nyu_depth_v2_labeled\.mat and splits\.mat"
    ):
        nyu_eigen(str(tmp_path))
    with pytest.raises(ValueError, match="unknown depth 'dense' of NYUv2; choose from raw, filled"):
        nyu_eigen(str(tmp_path), "dense")
