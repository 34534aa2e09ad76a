"""NYUv2 and KITTI: MATLAB's axes and counting from 1, units, and which depth belongs to which image."""

import multiprocessing
import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import set_files as files
from set_files import disparity

from depthany.data.sets.kitti import KITTIAnnotated
from depthany.data.sets.nyu import FILE, NYUv2Labeled, NYUv2Raw

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)  # [n h w 3], as one looks at them
DEPTHS = np.arange(1, 5 * 4 * 6 + 1, dtype=np.float32).reshape(5, 4, 6) / 16


@pytest.fixture
def nyu(tmp_path: Path) -> Path:
    raw = DEPTHS.copy()
    raw[:, 0, 1] = 0
    with h5py.File(tmp_path / FILE, "w", userblock_size=512) as file:
        file["images"] = IMAGES.transpose(0, 3, 2, 1)
        file["depths"] = DEPTHS.transpose(0, 2, 1)
        file["rawDepths"] = raw.transpose(0, 2, 1)
    (tmp_path / "splits.mat").write_bytes(b"")
    scipy.io.savemat(tmp_path / "splits.mat", {"trainNdxs": [[3], [1], [4]], "testNdxs": [[2], [5]]})
    return tmp_path


def test_nyu_frames_stand_upright_and_the_split_counts_from_one(nyu: Path) -> None:
    test = NYUv2Labeled(str(nyu), split="test", depth="depths")
    assert [test.name(i) for i in range(len(test))] == ["0002", "0005"]
    for i, frame in enumerate((1, 4)):
        sample = test.read(i)
        np.testing.assert_array_equal(sample.image, IMAGES[frame])
        known = DEPTHS[frame] <= 10
        np.testing.assert_allclose(sample.labels.disparity, np.where(known, 1 / DEPTHS[frame], 0), rtol=1e-6)
    assert [pair.name for pair in NYUv2Labeled(str(nyu)).pairs] == ["0001", "0003", "0004"]


def test_raw_depth_of_nyu_has_holes_where_the_filled_one_has_none(nyu: Path) -> None:
    assert not NYUv2Labeled(str(nyu), split="all").labels(0).mask[0, 1]
    assert NYUv2Labeled(str(nyu), split="all", depth="depths").labels(0).mask[0, 1]


def test_nyu_can_be_sent_to_another_process_after_a_read(nyu: Path) -> None:
    dataset = NYUv2Labeled(str(nyu), split="all")
    before = dataset.read(3).image
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(dataset)).read(3).image, before)


def test_a_forked_loader_opens_the_file_of_nyu_for_itself(nyu: Path) -> None:
    dataset = NYUv2Labeled(str(nyu), split="all")
    before = [dataset.labels(i).disparity for i in range(5)]
    reader = _Reader(dataset)  # before the fork, which hands its open file on
    with multiprocessing.get_context("fork").Pool(2) as pool:
        after = pool.map(reader, range(5))
    np.testing.assert_array_equal([disparity for disparity, _ in after], before)
    assert os.getpid() not in {pid for _, pid in after}


class _Reader:
    """Disparity of a frame, with the process whose file it was read from."""

    dataset: NYUv2Labeled

    def __init__(self, dataset: NYUv2Labeled) -> None:
        type(self).dataset = dataset  # handed on by the fork, not by pickle

    def __call__(self, index: int) -> tuple[np.ndarray, int]:
        disparity = self.dataset.labels(index).disparity
        assert self.dataset._open is not None
        return disparity, self.dataset._open[0]


def test_a_split_beyond_the_frames_of_the_file_is_refused(nyu: Path) -> None:
    scipy.io.savemat(nyu / "splits.mat", {"trainNdxs": [[0], [1]]})
    with pytest.raises(ValueError, match=r"splits\.mat: names frames 0 to 1, .* has 5"):
        NYUv2Labeled(str(nyu))
    with h5py.File(nyu / FILE, "w") as file:
        file["images"] = IMAGES
    with pytest.raises(ValueError, match=f"{FILE}: expected the labeled set, which has rawDepths"):
        NYUv2Labeled(str(nyu), split="all")
    (nyu / FILE).write_bytes(b"html")
    with pytest.raises(ValueError, match=f"{FILE}: cannot read the file"):
        NYUv2Labeled(str(nyu), split="all")


def test_raw_frames_of_nyu_are_found_or_taken_from_the_list_of_bts(tmp_path: Path) -> None:
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


def test_kitti_unit_is_1_over_256_metre_and_images_without_annotation_are_no_error(kitti: Path) -> None:
    dataset = KITTIAnnotated(str(kitti / "raw"), depth_root="../depth")
    assert [pair.name[-14:] for pair in dataset.pairs] == ["0000000005.png", "0000000006.png"]
    assert disparity(dataset) == [[None, 1, 0.0125], [None, None, 2]]
    assert len(KITTIAnnotated(str(kitti / "raw"), str(kitti / "depth"), split="all")) == 3


def test_kitti_depth_without_its_image_is_named_with_both_files(kitti: Path) -> None:
    (kitti / f"raw/{DATE}/{DRIVE}/image_02/data/0000000006.png").unlink()
    with pytest.raises(ValueError, match=r"1 file.*groundtruth/image_02/0000000006\.png \(no 2011_09_26/"):
        KITTIAnnotated(str(kitti / "raw"), "../depth")
    with pytest.raises(ValueError, match=r"raw/data_depth_annotated: no such folder: pass depth_root="):
        KITTIAnnotated(str(kitti / "raw"))


def test_a_list_of_kitti_with_none_as_depth_leaves_the_line_out_and_counts_it(kitti: Path) -> None:
    image, depth = f"{DATE}/{DRIVE}/image_02/data", f"{DRIVE}/proj_depth/groundtruth/image_02"
    (kitti / "list.txt").write_text(
        f"{image}/0000000005.png {depth}/0000000005.png 721.5377\n{image}/0000000000.png None 721.5377\n"
    )
    dataset = KITTIAnnotated(str(kitti / "raw"), "../depth/train", list_file=str(kitti / "list.txt"))
    assert len(dataset) == 1
    assert dataset.left_out == {"without depth in the list": 1}
    assert disparity(dataset)[0] == [None, 1, 0.0125]
