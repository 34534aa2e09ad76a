"""What real folders get wrong about depth, all of it at once, and the report of it."""

import os
from pathlib import Path

import numpy as np
import OpenEXR
from PIL import Image
from tiny_sets import write

METRES = np.random.default_rng(0).uniform(0.2, 3, (6, 8)).astype(np.float32)


def plant(root: Path) -> dict[str, tuple[str, str, str]]:
    """A set with the faults of A1, A2 and D3 of depth; returns level, kind and part of the reason by file."""
    for stem in ("good_1", "good_2", "good_3"):
        write(root, stem, METRES)
    write(root, "millimetres", (1000 * METRES).astype(np.uint16))
    for stem in ("gray_8", "gray_24", "coloured", "two_arrays", "two_channels", "layers", "half"):
        write(root, stem, METRES)
        (root / f"depth/{stem}.npy").unlink()
    gray = (80 * METRES).astype(np.uint8)
    Image.fromarray(gray).save(root / "depth/gray_8.png")
    Image.fromarray(np.stack([gray] * 3, 2)).save(root / "depth/gray_24.png")
    Image.fromarray(np.stack([gray, gray // 2, 255 - gray], 2)).save(root / "depth/coloured.png")
    np.savez(root / "depth/two_arrays.npz", near=METRES, far=METRES)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"R": METRES, "G": 2 * METRES}).write(str(root / "depth/two_channels.exr"))
    OpenEXR.File(header, {"View.Depth.Z": METRES, "View.R": 2 * METRES}).write(str(root / "depth/layers.exr"))
    np.save(root / "depth/half.npy", METRES[::2, ::2])
    return {
        "depth/millimetres.png": ("error", "unknown unit", "depth is stored as uint16"),
        "depth/gray_8.png": ("error", "unknown unit", "depth is stored as uint8"),
        "depth/gray_24.png": ("error", "unreadable depth", "quantity=disparity takes three equal channels"),
        "depth/coloured.png": ("error", "unreadable depth", "these differ: a colour-mapped picture"),
        "depth/two_arrays.npz": ("error", "unreadable depth", "the file has near, far: set npz_key"),
        "depth/two_channels.exr": ("error", "unreadable depth", "the file has G, R, which differ: set exr"),
        "depth/half.npy": ("error", "sizes differ", "depth is 4x3, its image 8x6"),
    }


def test_faults_of_real_folders_are_reported_together(check, tmp_path: Path) -> None:
    planted = plant(tmp_path / "mine")
    for stem in ("a", "b"):
        write(tmp_path / "as_mm", stem, METRES)
        write(tmp_path / "half", stem, METRES[::2, ::2], np.zeros((6, 8, 3), np.uint8))
    words = [
        "data.labeled.mine.depth_scale=null",
        f"data.val.mine.root={tmp_path / 'as_mm'}",
        "data.val.mine.depth_scale=1000",
        f"data.unlabeled.mine.root={tmp_path / 'half'}",
        "data.unlabeled.mine._target_=depthany.data.folder_depth.FolderDepth",
        "+data.unlabeled.mine.resize_depth=nearest",
    ]
    ended = check(*words)
    assert ended.code == 1, ended.err
    found = {(path, kind): (level, reason) for level, _, kind, path, reason in ended.problems}
    for name, (level, kind, reason) in planted.items():
        found_level, found_reason = found.pop((str(tmp_path / "mine" / name), kind))
        assert found_level == level and reason in found_reason
    level, reason = found.pop((str(tmp_path / "as_mm"), "implausible labels"))
    assert level == "warning" and reason.endswith("the stored values look like metres: depth_scale=1")
    assert f"warning: val.mine: {reason}" in ended.out
    assert {kind for _, kind in found} == {"blank image"}, "nothing else is wrong"
    assert "unlabeled.mine: 2 of 2 depth maps read are resized to their image: 4x3 to 8x6" in ended.out
    sets = ended.report["sets"]
    assert sets["labeled.mine"]["problems"] == {"unknown unit": 2, "unreadable depth": 4, "sizes differ": 1}
    assert sets["val.mine"]["warnings"] == [reason]
    assert sets["unlabeled.mine"]["labels_resized"] == 2
    assert sets["unlabeled.mine"]["labels_stored_as"] == {"float32": 2}


def test_relative_labels_are_well_if_declared(check, tmp_path: Path) -> None:
    write(tmp_path / "mine", "a", METRES)
    (tmp_path / "mine/depth/a.npy").unlink()
    gray = (80 * METRES).astype(np.uint8)
    Image.fromarray(np.stack([gray] * 3, 2)).save(tmp_path / "mine/depth/a.png")
    ended = check("data.labeled.mine.depth_scale=null", "data.labeled.mine.quantity=disparity")
    assert ended.code == 0 and "\nall is well: " in ended.out
    assert ended.report["sets"]["labeled.mine"]["depth"]["unit"] == "disparity"


def test_warnings_are_not_all_well(check, tmp_path: Path) -> None:
    write(tmp_path / "mine", "a", METRES)
    ended = check()
    assert ended.code == 0
    assert "warning: labeled.mine: the median of the known depth is 0.00" in ended.out
    assert "\nno error, and 1 warning to look at: " in ended.out


def test_set_of_flat_maps_is_an_error(check, tmp_path: Path) -> None:
    one_pixel = np.zeros((6, 8), np.uint16)
    one_pixel[2, 3] = 1500
    write(tmp_path / "mine", "constant", np.full((6, 8), 2000, np.uint16))
    write(tmp_path / "mine", "one_pixel", one_pixel)
    ended = check()
    assert ended.code == 1
    assert "error: labeled.mine: all 2 depth maps are constant or known at fewer than 3" in ended.out
    write(tmp_path / "mine", "good", (1000 * METRES).astype(np.uint16))
    ended = check()
    assert ended.code == 0
    assert "labeled.mine: 2 depth maps say nothing about relative depth: training leaves" in ended.out


def test_relative_labels_are_a_note(check, tmp_path: Path) -> None:
    write(tmp_path / "mine", "a", (80 * METRES).astype(np.uint8))
    ended = check("data.labeled.mine.quantity=disparity", "data.labeled.mine.depth_scale=null")
    assert ended.code == 0
    assert "note: labeled.mine: relative labels: larger must be nearer" in ended.out


def test_names_that_are_not_utf8_are_reported(check, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    folder = os.path.join(os.fsencode(tmp_path), b"plain")
    good, bad = os.path.join(folder, b"\xe9.png"), os.path.join(folder, b"caf\xe9.png")
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(os.fsdecode(good))
    Path(os.fsdecode(bad)).write_bytes(b"damaged")
    root = f"data.unlabeled.mine.root={tmp_path / 'plain'}"
    ended = check(root, "data.labeled.mine.root=null", "sheet_images=2")
    assert ended.code == 1 and r"caf\udce9.png: not an image" in ended.out
    assert ended.report["sets"]["unlabeled.mine"]["problems"] == {"unreadable image": 1}
    assert bad in (ended.folder / "problems.txt").read_bytes()
    assert (ended.folder / "contact_unlabeled_mine.jpg").is_file()


def test_small_unlabeled_image_is_an_error(check, tmp_path: Path) -> None:
    write(tmp_path / "mine", "a", (1000 * METRES).astype(np.uint16))  # 8 x 6, which may be small
    (tmp_path / "plain").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "plain/large.png")
    Image.fromarray(pixels[:8]).save(tmp_path / "plain/small.png")
    words = f"data.unlabeled.mine.root={tmp_path / 'plain'}", "data.min_side=32"
    ended = check(*words)
    small = ["error", "unlabeled.mine", "unreadable image", str(tmp_path / "plain/small.png")]
    assert ended.problems == [[*small, "its smaller side has 8 pixels, data.min_side is 32"]]
    assert check(words[0], out="other").code == 0
