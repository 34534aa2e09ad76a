"""`python -m depthany.check_data`: every planted defect is found, named and counted, and nothing else."""

import json
import os
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_sets import plant, whole, write

from depthany.check_data import main
from depthany.checking.read_sets import draw_indices
from depthany.checking.sheet import _legend
from depthany.data import image_formats
from depthany.data.unlabeled import FolderImages

ROOT = Path(__file__).resolve().parents[2]


class HasExpectation(FolderImages):
    """A set that knows how many images there should be."""

    expected = 5

    def __init__(self, root: str, **_: object) -> None:
        super().__init__(f"{root}/images")


def test_report_by_hand(check, tmp_path: Path) -> None:
    write(tmp_path / "mine", "a", np.array([[1000, 2000, 4000, 8000], [0, 0, 0, 65535]], np.uint16))
    write(tmp_path / "mine", "b", np.array([[1000, 1000], [3000, 65000]], np.uint16))
    ended = check("data.labeled.mine.sky_value=65535", "data.labeled.mine.max_depth=50")
    assert ended.code == 0, ended.err
    report = ended.report["sets"]["labeled.mine"]
    assert (report["found"], report["checked"], report["problems"]) == (2, 2, {})
    assert report["valid_share"] == {
        "images": 2,
        "mean": (5 / 8 + 3 / 4) / 2,
        "min": 5 / 8,
        "below_threshold": 0,
    }
    assert report["sky_share"] == 1 / 16
    assert report["without_depth"] == {
        "zero": {"share": 3 / 16, "images": 1, "first": ["a"]},
        "too far": {"share": 1 / 8, "images": 1, "first": ["b"]},
    }
    depth = report["depth"]  # 1 1 1 2 3 4 8
    assert (depth["unit"], depth["pixels"], depth["min"], depth["max"]) == ("m", 7, 1.0, 8.0)
    expected = {"1": 1, "5": 1, "25": 1, "50": 2, "75": 4, "95": 8, "99": 8}
    assert depth["percentiles"] == pytest.approx(expected, rel=1e-3)
    assert [(b["from"], b["to"], b["pixels"]) for b in depth["histogram"]] == [
        (1, 2, 3),
        (2, 4, 2),
        (4, 8, 1),
        (8, 16, 1),
    ]
    assert report["sizes"] == {"min": [2, 2], "median": [2, 2], "max": [4, 2], "distinct": 2}


def test_disparity_0_is_unknown_not_sky(check, tmp_path: Path) -> None:
    write(tmp_path / "mine", "a", np.array([[0, 0.5, 0.75, 100], [np.nan, -1, 3, 3]], np.float32))
    words = ["data.labeled.mine.quantity=disparity", "data.labeled.mine.depth_scale=null"]
    report = check(*words).report["sets"]["labeled.mine"]
    assert (report["valid_share"]["mean"], report["sky_share"]) == (5 / 8, 0)
    assert {name: each["share"] for name, each in report["without_depth"].items()} == {
        "not finite": 1 / 8,
        "negative": 1 / 8,
        "zero": 1 / 8,
    }
    depth = report["depth"]
    assert (depth["unit"], depth["pixels"], depth["zeros"]) == ("disparity", 5, 0)
    assert (depth["min"], depth["max"]) == (0.5, 100), "metres have no say here"
    assert [each["pixels"] for each in depth["histogram"]] == [2, 0, 2, 0, 0, 0, 0, 1]


def test_every_planted_defect_is_named(check, tmp_path: Path) -> None:
    planted = plant(tmp_path / "mine")
    ended = check()
    assert ended.code == 1
    found = {(path, kind): (level, reason) for level, _, kind, path, reason in ended.problems}
    assert (str(tmp_path / "mine/depth/all_negative.npy"), "negative depth") in found, "it has two problems"
    del found[str(tmp_path / "mine/depth/all_negative.npy"), "negative depth"]
    level, reason = found.pop((str(tmp_path / "mine"), "implausible labels"))
    assert level == "warning" and "share depth_scale=1000: 3 float32, 11 uint16" in reason
    level, reason = found.pop((str(tmp_path / "mine"), "flat depth"))
    assert (level, reason[:14]) == ("warning", "2 depth maps s"), "the constant and the sparse one"
    for name, (level, kind, reason) in planted.items():
        found_level, found_reason = found.pop((str(tmp_path / "mine" / name), kind))
        assert found_level == level and reason in found_reason
        assert f"{tmp_path / 'mine' / name}: " in ended.out
    assert not found, "nothing else is wrong"
    report = ended.report["sets"]["labeled.mine"]
    assert (report["found"], report["checked"], report["wrong"]) == (16, 16, True)
    assert report["problems"] == {
        "no partner": 2,
        "unreadable image": 3,
        "unreadable depth": 2,
        "no valid pixel": 3,
        "sizes differ": 1,
        "negative depth": 2,
        "constant depth": 1,
        "few valid pixels": 1,
        "blank image": 1,
    }
    assert report["without_partner"] == ["depth/orphan", "images/alone"]
    assert report["without_depth"]["not finite"]["first"] == ["nan"]
    assert report["without_depth"]["negative"]["images"] == 2
    assert report["reasons"]["unreadable image"]["the file is empty (0 bytes)"] == 1


def test_missing_root_does_not_stop_other_sets(check, tmp_path: Path) -> None:
    write(tmp_path / "mine", "a", whole())
    ended = check("data.val.mine.root=/no/such", f"data.unlabeled.mine.root={tmp_path / 'mine/images'}")
    assert ended.code == 1
    assert "error: val.mine: /no/such: no such folder" in ended.out
    assert ended.problems[0][:4] == ["error", "val.mine", "cannot be opened", "/no/such"]
    sets = ended.report["sets"]
    assert {name: report["checked"] for name, report in sets.items()} == {
        "labeled.mine": 1,
        "val.mine": 0,
        "unlabeled.mine": 1,
    }
    assert not sets["labeled.mine"]["wrong"]


def test_sets_without_root_are_named(check, tmp_path: Path) -> None:
    write(tmp_path / "mine", "a", whole())
    ended = check("data.unlabeled.mine.root=???")
    assert ended.code == 0
    assert ended.out.startswith(
        "without a root, not checked: val.mine, unlabeled.mine\nlisting labeled.mine\n"
    )


def test_warnings_alone_exit_with_0(check, tmp_path: Path) -> None:
    write(tmp_path / "mine", "constant", np.full((6, 8), 4000, np.uint16))
    write(tmp_path / "mine", "good", whole())
    ended = check()
    assert ended.code == 0
    assert "warning: labeled.mine: constant depth: 1" in ended.out


def test_fewer_images_than_expected_are_a_warning(check, tmp_path: Path) -> None:
    for i in range(2):
        write(tmp_path / "mine", f"{i}", whole(seed=i))
    ended = check("data.labeled.mine._target_=test_check_data.HasExpectation", "~data.unlabeled.mine")
    assert ended.code == 0, ended.err
    assert "warning: labeled.mine: 2 images found, 5 expected" in ended.out
    assert ended.report["sets"]["labeled.mine"]["expected"] == 5


def test_gray_image_is_unreadable_or_counted(check, tmp_path: Path) -> None:
    write(tmp_path / "mine", "a", whole())
    write(tmp_path / "mine", "b", whole())
    ramp = np.arange(48, dtype=np.uint8).reshape(6, 8)
    Image.fromarray(ramp).save(tmp_path / "mine/images/b.png")
    assert check().code == 1
    ended = check("data.convert_images=true")
    report = ended.report["sets"]["labeled.mine"]
    assert (ended.code, report["stored_as"]) == (0, {"L": 1, "RGB": 1})
    assert report["gray_images"] == {"images": 1, "first": ["b"]}
    assert "converted to RGB: 1 L" in ended.out


def test_seed_decides_which_images_a_limit_draws(check, tmp_path) -> None:
    for i in range(9):
        write(tmp_path / "mine", f"{i}", np.full((2, 2), 1000 + 100 * i, np.uint16))
    ended = check("limit=4")
    assert ended.report["sets"]["labeled.mine"]["checked"] == 4
    assert "labeled.mine: 4 of 9 images, drawn with seed=0" in ended.out
    again, other = check("limit=4", out="again"), check("limit=4", "seed=5", out="other")
    assert again.problems == ended.problems, "a line for each image, which is constant"
    assert other.problems != ended.problems
    drawn = draw_indices(1000, 100, 0, "a")
    assert list(drawn) == sorted(set(drawn)) and len(drawn) == 100
    assert draw_indices(1000, 100, 0, "b") != drawn


def test_sheets_show_good_pairs_and_masks(check, tmp_path: Path) -> None:
    plant(tmp_path / "mine")
    write(tmp_path / "mine", "tall", whole((60, 5)))
    unlabeled = tmp_path / "mine/images"
    ended = check(
        "sheet_images=8", f"data.unlabeled.mine.root={unlabeled}", "data.labeled.mine.sky_value=4000"
    )
    assert sorted(path.name for path in ended.folder.glob("*.jpg")) == [
        "contact_labeled_mine.jpg",
        "contact_unlabeled_mine.jpg",
    ]
    sheet = np.asarray(Image.open(ended.folder / "contact_labeled_mine.jpg")).astype(int)
    rows = sheet[60:200, 6 + 2 * 246 : 6 + 3 * 246]  # the first mask
    assert (rows.min(2) > 250).mean() > 0.2, "white where there is depth"


def test_sheet_leaves_out_masks_without_a_hole(check, tmp_path: Path) -> None:
    for name in "abcd":
        write(tmp_path / "mine", name, whole())
    sheet = Image.open(check("sheet_images=4").folder / "contact_labeled_mine.jpg")
    of_cell = 180 + 18 + 6  # a tile and its caption
    assert (sheet.height - 2 * 18 - 6) // of_cell == 2, "three images of two tiles in a row"


def test_passed_over_files_are_counted_and_named(
    check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_formats, "has_heic", lambda: False)
    write(tmp_path / "mine", "a", whole())
    for name in ("images/b.HEIC", "images/c.gif", "depth/d.webp", "depth/notes.txt"):
        (tmp_path / "mine" / name).touch()
    ended = check()
    text = "3 passed over: 1 .gif, 1 .heic (install depthany[heic]), 1 .webp"
    assert ended.code == 0
    assert f"warning: labeled.mine: {text}\n" in ended.out
    assert "no error, and 1 warning to look at: " in ended.out
    assert ended.report["sets"]["labeled.mine"]["passed_over"] == {".heic": 1, ".gif": 1, ".webp": 1}


def test_tar_that_ends_early_is_an_error(check, tmp_path: Path) -> None:
    for stem in ("a", "b"):
        write(tmp_path / "mine", stem, whole())
    (tmp_path / "tars").mkdir()
    tar = tmp_path / "tars/0.tar"
    with tarfile.open(tar, "w") as archive:
        for stem in ("a", "b"):
            archive.add(tmp_path / f"mine/images/{stem}.png", f"{stem}.png")
    with tarfile.open(tar) as archive:
        second = archive.getmember("b.png").offset
    os.truncate(tar, second + 100)
    mine = "data.unlabeled.mine"
    ended = check(f"dataset@{mine}=indexed_images", f"{mine}.root={tar.parent}", f"{mine}.kind=tar")
    assert ended.code == 1
    assert [
        "error",
        "unlabeled.mine",
        "archive ends early",
        str(tar),
        f"ends early, at byte {second}: the images before it are used",
    ] in ended.problems
    assert "all is well" not in ended.out


def turned(path: Path, orientation: int) -> None:
    """Saves an image again as JPEG with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(path).save(path.with_suffix(".jpg"), exif=exif)
    path.unlink()


def test_turned_photos_are_said(check, tmp_path: Path) -> None:
    for stem, orientation in (("half", 3), ("quarter", 6), ("upright", 1)):
        write(tmp_path / "mine", stem, whole())
        turned(tmp_path / f"mine/images/{stem}.png", orientation)
    ended = check()
    assert ended.code == 1
    (half,), (quarter,) = (
        [line for line in ended.problems if line[2] == kind] for kind in ("turned by EXIF", "sizes differ")
    )
    assert half[0] == "warning" and half[3].endswith("images/half.jpg")
    assert "EXIF orientation 3" in half[4] and "exif_orientation=apply confirms it" in half[4]
    assert quarter[0] == "error" and quarter[3].endswith("depth/quarter.png")
    assert "stored as 8x6 and turned by its EXIF orientation 6: exif_orientation=ignore" in quarter[4]
    assert check("data.labeled.mine.exif_orientation=ignore").code == 0


def test_sample_has_no_problem(check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, kind in (("labeled/train", "depth"), ("labeled/val", "depth"), ("unlabeled/val", "depth")):
        for folder in ("images", kind):
            for scene, first in (("rooms", 0), ("streets", 1)):
                for number in range(first, 10, 2):
                    suffix = ".jpg" if folder == "images" else ".png"
                    name = f"data/sample/{split}/{folder}/{scene}/{number:05d}{suffix}"
                    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(
        tmp_path / "data/sample/labeled/val/images", tmp_path / "data/sample/unlabeled/train/images"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["check_data"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    out = tmp_path / "outputs/check_data"
    sets = json.loads((out / "report.json").read_text())["sets"]
    assert {name: report["checked"] for name, report in sets.items()} == {
        "labeled.sample": 10,
        "val.labeled_rooms": 5,
        "val.labeled_streets": 5,
        "val.unlabeled_rooms": 5,
        "val.unlabeled_streets": 5,
        "unlabeled.sample": 10,
    }
    assert sets["val.labeled_rooms"]["sky_share"] == 0 < sets["val.labeled_streets"]["sky_share"]
    assert all(
        report["valid_share"]["mean"] == 1 for name, report in sets.items() if name != "unlabeled.sample"
    )
    assert len(list(out.glob("contact_*.jpg"))) == 6


MISTAKES = {
    "limit=0": "limit=0: expected 1 or more",
    "workers=0": "workers=0: expected 1 or more",
    "seed=-1": "seed=-1: expected 0 or more",
    "sheet_images=-1": "sheet_images=-1: expected 0 or more",
    "min_valid_share=2": "min_valid_share=2.0: expected 0 to 1",
    "limit=few": "limit: Value 'few'",
    "limmit=3": "unknown setting 'limmit'; did you mean limit?",
    "data=nothing": "unknown data 'nothing'; choose from ade20k, cityscapes, depth_anything_metric",
    "data.labeled.mine._target_=depthany.data.labeled.Folder": "Error locating target",
    "+data.labeled.more=5": "data.labeled.more: expected a data set with a _target_",
    "+data.labeled.more.root=a": "data.labeled.more: expected a data set with a _target_",
    "data.labeled.mine.root=???": "no set has a root: give one of data.labeled.mine.root=...",
    "out=/proc/none": "cannot write into out=/proc/none",
    "data.labeled.mine.max_dept=3": "unknown setting 'data.labeled.mine.max_dept'; did you mean",
}


@pytest.mark.parametrize("mistake, expected", MISTAKES.items(), ids=MISTAKES)
def test_mistake_is_one_line(check, tmp_path: Path, mistake: str, expected: str) -> None:
    write(tmp_path / "mine", "a", whole())
    ended = check(mistake)
    assert ended.code == 2
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1
    assert expected in ended.err


def test_report_of_others_is_not_replaced(check, tmp_path: Path) -> None:
    write(tmp_path / "mine", "a", whole())
    assert check(out="out").code == 0
    assert check(out="out").code == 0, "an earlier report is replaced"
    report = tmp_path / "out/report.json"
    report.write_text("mine")
    ended = check(out="out")
    assert (ended.code, report.read_text()) == (2, "mine")
    assert "holds report.json, problems.txt, which no earlier call of this command wrote" in ended.err


def test_legend_of_labels_without_holes() -> None:
    assert _legend("disparity", False) == "image | disparity: red is near, blue far; no pixel is unknown"
    assert ", gray unknown | mask: " in _legend("m", True)
