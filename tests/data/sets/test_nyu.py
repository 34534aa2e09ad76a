"""NYUv2: frames from MATLAB files and from PNGs, in their splits, with raw and filled depth."""

import multiprocessing
import os
import pickle
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import set_files as files
from set_files import disparity

from benchmark_trees import IMAGE, write_nyu_mat, write_nyu_png, write_scenes
from depthany.data.sets.nyu import FILE, NYUv2, NYUv2Raw

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)  # [n h w 3], as one looks at them
DEPTHS = np.arange(1, 5 * 4 * 6 + 1, dtype=np.float32).reshape(5, 4, 6) / 16

nyu_test = partial(NYUv2, split="test")


@pytest.fixture
def nyu(tmp_path: Path) -> Path:
    raw = DEPTHS.copy()
    raw[:, 0, 1] = 0
    with h5py.File(tmp_path / FILE, "w", userblock_size=512) as file:
        file["images"] = IMAGES.transpose(0, 3, 2, 1)
        file["depths"] = DEPTHS.transpose(0, 2, 1)
        file["rawDepths"] = raw.transpose(0, 2, 1)
        write_scenes(file, ["a", "a", "b", "b", "c"])
    scipy.io.savemat(tmp_path / "splits.mat", {"trainNdxs": [[3], [1], [4]], "testNdxs": [[2], [5]]})
    return tmp_path


def test_frames_stand_upright_and_count_from_one(nyu: Path) -> None:
    test = NYUv2(str(nyu), split="test", depth="filled")
    assert [test.name(i) for i in range(len(test))] == ["a/rgb_0002", "c/rgb_0005"]
    for i, frame in enumerate((1, 4)):
        sample = test.read(i)
        np.testing.assert_array_equal(sample.image, IMAGES[frame])
        known = DEPTHS[frame] <= 10
        np.testing.assert_array_equal(sample.labels.valid, known)
        np.testing.assert_array_equal(sample.labels.values[known], DEPTHS[frame][known])
        np.testing.assert_allclose(sample.labels.disparity, np.where(known, 1 / DEPTHS[frame], 0), rtol=1e-6)
    assert [pair.name for pair in NYUv2(str(nyu)).pairs] == ["a/rgb_0001", "b/rgb_0003", "b/rgb_0004"]


def test_first_pixels_of_a_frame_by_hand(tmp_path: Path) -> None:
    write_nyu_mat(tmp_path)
    images = nyu_test(str(tmp_path))
    assert [images.name(i) for i in range(len(images))] == ["kitchen_0002/rgb_0002", "kitchen_0005/rgb_0005"]
    sample = images.read(0)
    assert sample.image.shape == (*IMAGE, 3)
    assert sample.image[0, 1].tolist() == [2, 0, 0]  # row 0, column 1
    assert sample.image.sum() == 2


def test_raw_depth_has_holes_filled_depth_none(tmp_path: Path) -> None:
    write_nyu_mat(tmp_path)
    raw, filled = (nyu_test(str(tmp_path), depth=depth).labels(1) for depth in ("raw", "filled"))
    hole = np.zeros(IMAGE, bool)
    hole[0, 1] = True
    assert (raw.valid == ~hole).all()
    assert filled.valid.all()
    assert (filled.values == 5).all()


def test_pngs_and_mat_agree_in_name_and_depth(tmp_path: Path) -> None:
    write_nyu_mat(tmp_path / "mat")
    write_nyu_png(tmp_path / "png")
    for depth in ("raw", "filled"):
        mat, png = (nyu_test(str(tmp_path / layout), depth=depth) for layout in ("mat", "png"))
        assert len(png) == 1
        assert mat.name(0) == png.name(0)
        assert (mat.labels(0).values == png.labels(0).values).all()
        assert (mat.labels(0).valid == png.labels(0).valid).all()
        assert png.read(0).image.shape == (*IMAGE, 3)


def test_image_without_its_png_depth_is_named(tmp_path: Path) -> None:
    write_nyu_png(tmp_path)
    (tmp_path / "test/kitchen_0002/depth_0002.png").unlink()
    with pytest.raises(ValueError, match=r"1 file\(s\) without partner .*: test/kitchen_0002/rgb_0002\.png"):
        nyu_test(str(tmp_path))
    assert len(nyu_test(str(tmp_path), depth="filled")) == 1


def test_reader_can_be_pickled_after_a_read(nyu: Path) -> None:
    dataset = NYUv2(str(nyu), split="all")
    before = dataset.read(3).image
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(dataset)).read(3).image, before)


def test_forked_loader_opens_its_own_file(nyu: Path) -> None:
    dataset = NYUv2(str(nyu), split="all")
    before = [dataset.labels(i).disparity for i in range(5)]
    reader = _Reader(dataset)  # before the fork, which hands its open file on
    with multiprocessing.get_context("fork").Pool(2) as pool:
        after = pool.map(reader, range(5))
    np.testing.assert_array_equal([disparity for disparity, _ in after], before)
    assert os.getpid() not in {pid for _, pid in after}


class _Reader:
    """Disparity of a frame, with the process whose file it was read from."""

    dataset: NYUv2

    def __init__(self, dataset: NYUv2) -> None:
        type(self).dataset = dataset  # handed on by the fork, not by pickle

    def __call__(self, index: int) -> tuple[np.ndarray, int]:
        disparity = self.dataset.labels(index).disparity
        assert self.dataset._open is not None
        return disparity, self.dataset._open[0]


def test_split_beyond_the_frames_is_refused(nyu: Path) -> None:
    scipy.io.savemat(nyu / "splits.mat", {"trainNdxs": [[0], [1]], "testNdxs": [[1], [6]]})
    with pytest.raises(ValueError, match=r"splits\.mat: names frames 0 to 1, .* has 5"):
        NYUv2(str(nyu))
    with pytest.raises(ValueError, match=r"splits\.mat: names frames 1 to 6, .* has 5"):
        nyu_test(str(nyu))


def test_mat_with_other_contents_is_named(nyu: Path) -> None:
    with h5py.File(nyu / FILE, "a") as file:
        del file["scenes"]
    with pytest.raises(ValueError, match=f"{FILE}: cannot read scenes"):
        NYUv2(str(nyu))
    with h5py.File(nyu / FILE, "w") as file:
        file["images"] = IMAGES
    with pytest.raises(ValueError, match=f"{FILE}: expected the labeled set, which has rawDepths"):
        NYUv2(str(nyu), split="all")
    (nyu / FILE).write_bytes(b"html")
    with pytest.raises(ValueError, match=f"{FILE}: cannot read the file"):
        NYUv2(str(nyu), split="all")


def test_missing_mat_files_are_named_with_the_layout(tmp_path: Path) -> None:
    write_nyu_mat(tmp_path)
    (tmp_path / "splits.mat").unlink()
    layout = r"NYUv2 expects `nyu_depth_v2_labeled\.mat` and `splits\.mat`"
    with pytest.raises(ValueError, match=rf"splits\.mat: no such file; {layout}"):
        nyu_test(str(tmp_path))
    (tmp_path / FILE).unlink()
    with pytest.raises(ValueError, match=rf"labeled\.mat: no such file; {layout}"):
        NYUv2(str(tmp_path), split="train")
    with pytest.raises(ValueError, match=rf"no pair of image and depth found; {layout}"):
        nyu_test(str(tmp_path))


def test_unknown_depth_and_lists_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown depth of NYUv2 'dense'; choose from raw, filled"):
        NYUv2(str(tmp_path), depth="dense")
    with pytest.raises(ValueError, match=r"list_file=a\.txt: NYUv2 has no lists: choose a split"):
        NYUv2(str(tmp_path), list_file="a.txt")


def test_raw_frames_are_found_or_listed(tmp_path: Path) -> None:
    root = tmp_path / "sync"
    for name in ("00000", "00045"):
        files.image(root / f"kitchen_0028b/rgb_{name}.jpg")
        files.png(root / f"kitchen_0028b/sync_depth_{name}.png", [[0, 500, 10000], [10001, 4000, 125]])
    assert len(NYUv2Raw(str(root))) == 2
    line = "/kitchen_0028b/rgb_00045.jpg /kitchen_0028b/sync_depth_00045.png 518.8579\n"
    (tmp_path / "train.txt").write_text(line)
    listed = NYUv2Raw(str(root), list_file=str(tmp_path / "train.txt"))
    assert disparity(listed) == [[None, 2, 0.1], [None, 0.25, 8]]
    assert listed.name(0).endswith("rgb_00045.jpg")
