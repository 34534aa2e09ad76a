"""BlendedMVS, DIML, HRWSI, MegaDepth: what is found, what a stored number means, what is left out."""

import os
from pathlib import Path

import numpy as np
import pytest
import set_files as files
from set_files import disparity

from depthany.data.sets.blended_mvs import BlendedMVS
from depthany.data.sets.diml import DIML
from depthany.data.sets.hrwsi import HRWSI
from depthany.data.sets.mega_depth import MegaDepth, kind_of

SCENE = "5a3ca9cb270f0e3f14d0eddb"


@pytest.fixture
def blended(tmp_path: Path) -> Path:
    for i in range(2):
        folder = tmp_path / SCENE
        files.image(folder / f"blended_images/{i:08d}.jpg", level=200)
        files.image(folder / f"blended_images/{i:08d}_masked.jpg", level=10)
        files.pfm(folder / f"rendered_depth_maps/{i:08d}.pfm", [[0.5, 2, 0], [1000, 4, np.nan]])
    (tmp_path / SCENE / "cams").mkdir()
    return tmp_path


def test_blended_mvs_is_upright_at_any_scale(blended: Path) -> None:
    assert disparity(BlendedMVS(str(blended))) == [[2, 0.5, None], [0.001, 0.25, None]]


def test_blended_mvs_reads_whole_or_masked_images(blended: Path) -> None:
    for masked, level in ((False, 200), (True, 10)):
        dataset = BlendedMVS(str(blended), masked=masked)
        assert [abs(int(dataset.read(i).image.mean()) - level) < 4 for i in range(len(dataset))] == [True] * 2


def test_blended_mvs_names_an_image_without_depth(blended: Path) -> None:
    (blended / SCENE / "rendered_depth_maps/00000001.pfm").unlink()
    with pytest.raises(
        ValueError, match=rf"1 file\(s\) without partner .*{SCENE}/blended_images/00000001\.jpg"
    ):
        BlendedMVS(str(blended))
    assert len(BlendedMVS(str(blended), allow_incomplete=True)) == 1


def test_diml_ranges_differ_indoors_and_outdoors(tmp_path: Path) -> None:
    depth_mm = [[0, 500, 2000], [10000, 10001, 65535]]
    files.image(tmp_path / "indoor/LR/store/color/in_01_c.png")
    files.png(tmp_path / "indoor/LR/store/depth_filled/in_01_depth_filled.png", depth_mm)
    files.image(tmp_path / "outdoor/street/outleft/out_01.png")
    files.image(tmp_path / "outdoor/street/outright/out_01.png")
    files.png(tmp_path / "outdoor/street/depthmap/out_01.png", depth_mm)
    both = DIML(str(tmp_path))
    assert [both.name(i) for i in range(2)] == [
        "indoor/LR/store/color/in_01_c.png",
        "outdoor/street/outleft/out_01.png",
    ]
    assert disparity(both, 0) == [[None, 2, 0.5], [0.1, None, None]]
    assert disparity(both, 1) == [[None, None, 0.5], [0.1, 0.09999, 0.015259]]
    assert len(DIML(str(tmp_path), parts=["outdoor"])) == 1
    with pytest.raises(ValueError, match="unknown part of DIML 'garden'; choose from indoor, outdoor"):
        DIML(str(tmp_path), parts=["garden"])


@pytest.fixture
def hrwsi(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        files.image(tmp_path / split / "imgs/a.jpg")
        files.png(tmp_path / split / "gts/a.png", [[0, 51, 255], [102, 1, 2]], np.uint8)
        files.png(tmp_path / split / "valid_masks/a.png", [[255, 255, 255], [0, 254, 255]], np.uint8)
    return tmp_path


def test_hrwsi_is_disparity_valid_where_mask_is_255(hrwsi: Path) -> None:
    assert disparity(HRWSI(str(hrwsi))) == [[0, 0.2, 1], [None, None, round(2 / 255, 6)]]
    assert HRWSI(str(hrwsi), split="val").name(0) == "val/imgs/a.jpg"


def test_hrwsi_image_without_mask_is_unpaired(hrwsi: Path) -> None:
    (hrwsi / "train/valid_masks/a.png").unlink()
    files.image(hrwsi / "train/imgs/b.jpg")
    with pytest.raises(ValueError, match=r"2 file\(s\).*a\.jpg \(no valid mask\), train/imgs/b\.jpg"):
        HRWSI(str(hrwsi))


EUCLIDEAN = [[0, 1.5, 2], [4, 8.25, 0]]
ORDINAL = [[0, 1, 1], [2, 2, 0]]


@pytest.fixture
def mega(tmp_path: Path) -> Path:
    root = tmp_path / "phoenix/S6/zl548/MegaDepth_v1"
    for name, rows in (("a.jpg", EUCLIDEAN), ("b.JPG", ORDINAL), ("c.png", EUCLIDEAN)):
        files.image(root / "0001/dense0/imgs" / name)
        files.hdf5(root / "0001/dense0/depths" / f"{name[0]}.h5", "depth", rows)
    files.image(root / "0002/dense1/imgs/a.jpg")  # the name of a frame in another scene
    files.hdf5(root / "0002/dense1/depths/a.h5", "depth", ORDINAL)
    return root


def test_mega_depth_leaves_ordinal_maps_out(mega: Path) -> None:
    dataset = MegaDepth(str(mega), kinds_file=str(mega / "kinds.txt"))
    assert [dataset.name(i) for i in range(len(dataset))] == [
        "0001/dense0/imgs/a.jpg",
        "0001/dense0/imgs/c.png",
    ]
    assert dataset.left_out == {"with an ordinal or empty map": 2}
    assert disparity(dataset) == [[None, 0.666667, 0.5], [0.25, 0.121212, None]]


def test_whole_middle_row_alone_is_not_ordinal(tmp_path: Path) -> None:
    files.hdf5(tmp_path / "a.h5", "depth", [[0.5, 0], [0, 0], [0, 0]])
    assert kind_of(tmp_path / "a.h5") == "euclidean"


def test_middle_row_with_enough_numbers_decides(tmp_path: Path) -> None:
    rows = np.zeros((3, 40), np.float32)
    rows[1], rows[2, 0] = 2, 0.5
    files.hdf5(tmp_path / "a.h5", "depth", rows)
    assert kind_of(tmp_path / "a.h5") == "ordinal"
    rows[1, 10:] = 0
    files.hdf5(tmp_path / "b.h5", "depth", rows)  # 10 whole numbers may be chance: the rest is read
    assert kind_of(tmp_path / "b.h5") == "euclidean"


def test_mega_depth_kinds_are_read_once(mega: Path) -> None:
    kinds = mega / "kinds.txt"
    MegaDepth(str(mega), kinds_file=str(kinds))
    files.hdf5(mega / "0001/dense0/depths/b.h5", "depth", EUCLIDEAN)  # not looked at again
    files.image(mega / "0001/dense0/imgs/d.jpg")
    files.hdf5(mega / "0001/dense0/depths/d.h5", "depth", EUCLIDEAN)
    assert len(MegaDepth(str(mega), kinds_file=str(kinds))) == 3
    kinds.write_text("nonsense\n")
    with pytest.raises(ValueError, match=r"kinds\.txt, line 1: not a list of MegaDepth's maps: delete"):
        MegaDepth(str(mega), kinds_file=str(kinds))


def test_mega_depth_kinds_survive_a_second_writer(mega: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds, flush = mega / "kinds.txt", os.fsync

    def let_another_rank_write(handle: int) -> None:
        monkeypatch.setattr(os, "fsync", flush)
        assert len(MegaDepth(str(mega), kinds_file=str(kinds))) == 2
        flush(handle)

    monkeypatch.setattr(os, "fsync", let_another_rank_write)
    assert len(MegaDepth(str(mega), kinds_file=str(kinds))) == 2
    assert len(kinds.read_text().splitlines()) == 4
    assert not list(mega.glob(".kinds*"))


def test_unreadable_mega_depth_map_is_named_when_read(mega: Path) -> None:
    (mega / "0001/dense0/depths/a.h5").write_bytes(b"no HDF5")
    dataset = MegaDepth(str(mega), kinds_file=str(mega / "kinds.txt"))
    with pytest.raises(ValueError, match=r"a\.h5: cannot read the depth map"):
        dataset.labels(0)
    assert "dense0/depths/a.h5" not in (mega / "kinds.txt").read_text()


def test_listed_ordinal_map_is_refused(mega: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("0001/dense0/imgs/b.JPG 0001/dense0/depths/b.h5\n")
    dataset = MegaDepth(str(mega), list_file=str(tmp_path / "list.txt"))
    with pytest.raises(ValueError, match=r"b\.h5: an ordinal map, not depth"):
        dataset.labels(0)
