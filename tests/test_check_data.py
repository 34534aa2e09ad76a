"""`python -m depthany.check_data`: every planted defect is found, named and counted, and nothing else."""

import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from depthany import schema
from depthany.check_data import draw_indices, main
from depthany.checking import processes
from depthany.checking.histogram import DepthHistogram
from depthany.data.unlabeled import FolderImages

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Ended:
    code: int
    out: str
    err: str
    folder: Path

    @property
    def report(self) -> dict:
        return json.loads((self.folder / "report.json").read_text())

    @property
    def problems(self) -> list[list[str]]:
        return [line.split("\t") for line in (self.folder / "problems.txt").read_text().splitlines()]


Check = Callable[..., Ended]


@pytest.fixture
def check(
    tmp_path: Path,
    ctrl_c_works: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Check:
    """`python -m depthany.check_data data=folder` in this process, on tmp_path / "mine"."""

    def start(*words: str, out: str = "out") -> Ended:
        own = ["data=folder", f"data.labeled.mine.root={tmp_path / 'mine'}", "workers=1", "sheet_images=0"]
        given = {word.partition("=")[0] for word in words}
        own = [word for word in own if word.partition("=")[0] not in given]
        monkeypatch.setattr(sys, "argv", ["check_data", *own, f"out={tmp_path / out}", *words])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return Ended(int(end.value.code or 0), captured.out, captured.err, tmp_path / out)

    return start


def write(root: Path, stem: str, stored: np.ndarray, image: np.ndarray | None = None) -> None:
    """A pair: random colours, and `stored` as PNG in millimetres, or as NPY where it is float."""
    for name in ("images", "depth"):
        (root / name).mkdir(parents=True, exist_ok=True)
    if image is None:
        image = np.random.default_rng(0).integers(0, 256, (*stored.shape, 3), dtype=np.uint8)
    Image.fromarray(image).save(root / "images" / f"{stem}.png")
    if stored.dtype == np.uint16:
        Image.fromarray(stored).save(root / "depth" / f"{stem}.png")
    else:
        np.save(root / "depth" / f"{stem}.npy", stored)


def whole(shape: tuple[int, int] = (6, 8), seed: int = 1) -> np.ndarray:
    """Depth of 1 to 9 m in millimetres."""
    return np.random.default_rng(seed).integers(1000, 9000, shape, dtype=np.uint16)


def test_shares_percentiles_and_histogram_are_those_computed_by_hand(check: Check, tmp_path: Path) -> None:
    write(tmp_path / "mine", "a", np.array([[1000, 2000, 4000, 8000], [0, 0, 0, 65535]], np.uint16))
    write(tmp_path / "mine", "b", np.array([[1000, 1000], [3000, 65000]], np.uint16))
    ended = check("data.labeled.mine.sky_value=65535", "data.labeled.mine.max_depth=50")
    assert ended.code == 0, ended.err
    told = ended.report["sets"]["labeled.mine"]
    assert (told["found"], told["checked"], told["problems"]) == (2, 2, {})
    assert told["valid_share"] == {
        "images": 2,
        "mean": (5 / 8 + 3 / 4) / 2,
        "min": 5 / 8,
        "below_threshold": 0,
    }
    assert told["sky_share"] == 1 / 16
    assert told["without_depth"] == {
        "zero": {"share": 3 / 16, "images": 1, "first": ["a"]},
        "too far": {"share": 1 / 8, "images": 1, "first": ["b"]},
    }
    depth = told["depth"]  # 1 1 1 2 3 4 8
    assert (depth["unit"], depth["pixels"], depth["min"], depth["max"]) == ("m", 7, 1.0, 8.0)
    expected = {"1": 1, "5": 1, "25": 1, "50": 2, "75": 4, "95": 8, "99": 8}
    assert depth["percentiles"] == pytest.approx(expected, rel=1e-3)
    assert [(b["from"], b["to"], b["pixels"]) for b in depth["histogram"]] == [
        (1, 2, 3),
        (2, 4, 2),
        (4, 8, 1),
        (8, 16, 1),
    ]
    assert told["sizes"] == {"min": [2, 2], "median": [2, 2], "max": [4, 2], "distinct": 2}


def plant(root: Path) -> dict[str, tuple[str, str, str]]:
    """A set with one defect of each kind; what is to be told: level, kind and part of the reason by file."""
    for i in range(3):
        write(root, f"whole_{i}", whole(seed=i))
    wrong = {
        "negative": np.where(whole() > 5000, whole(), -1.0).astype(np.float32),
        "nan": np.full((6, 8), np.nan, np.float32),
        "zero": np.zeros((6, 8), np.uint16),
        "all_negative": np.full((6, 8), -2.0, np.float32),
        "constant": np.full((6, 8), 4000, np.uint16),
        "sparse": np.pad(np.full((1, 2), [[2000, 3000]], np.uint16), ((0, 19), (0, 18))),
    }
    for name, stored in wrong.items():
        write(root, name, stored)
    write(root, "blank", whole(), np.full((6, 8, 3), 7, np.uint8))
    write(root, "size", whole(), whole((5, 8))[:, :, None].repeat(3, 2).astype(np.uint8))
    for name in ("empty", "cut", "text", "alone", "gray", "channels"):
        write(root, name, whole())
    (root / "images/empty.png").write_bytes(b"")
    cut = (root / "depth/cut.png").read_bytes()
    (root / "depth/cut.png").write_bytes(cut[: len(cut) // 2])
    (root / "images/text.png").write_text("no image")
    (root / "depth/alone.png").unlink()
    write(root, "orphan", whole())
    (root / "images/orphan.png").unlink()
    Image.new("L", (8, 6)).save(root / "images/gray.png")
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(root / "depth/channels.png")
    return {
        "depth/negative.npy": ("warning", "negative depth", "of the pixels are below 0"),
        "depth/nan.npy": ("error", "no valid pixel", "between 0.001 and 80 m"),
        "depth/zero.png": ("error", "no valid pixel", "remove the pair"),
        "depth/all_negative.npy": ("error", "no valid pixel", "at depth_scale=1000"),
        "depth/constant.png": ("warning", "constant depth", "the same at all 48 measured pixels"),
        "depth/sparse.png": ("warning", "few valid pixels", "0.50% of the pixels are valid"),
        "images/blank.png": ("warning", "blank image", "one colour, [7, 7, 7]"),
        "depth/size.png": ("error", "sizes differ", "depth is 8x6, its image 8x5"),
        "images/empty.png": ("error", "unreadable image", "the file is empty (0 bytes)"),
        "depth/cut.png": ("error", "unreadable depth", "cannot read the depth map"),
        "images/text.png": ("error", "unreadable image", "not an image, or damaged beyond its header"),
        "images/alone": ("error", "no partner", "no partner"),
        "depth/orphan": ("error", "no partner", "no partner"),
        "images/gray.png": ("error", "unreadable image", "expected an 8-bit RGB image, got gray"),
        "depth/channels.png": ("error", "unreadable depth", "expected one channel of numbers"),
    }


def test_each_planted_defect_is_named_with_its_reason_and_the_rest_is_checked(
    check: Check, tmp_path: Path
) -> None:
    planted = plant(tmp_path / "mine")
    ended = check()
    assert ended.code == 1
    found = {(path, kind): (level, reason) for level, _, kind, path, reason in ended.problems}
    assert (str(tmp_path / "mine/depth/all_negative.npy"), "negative depth") in found, "it has two problems"
    del found[str(tmp_path / "mine/depth/all_negative.npy"), "negative depth"]
    for name, (level, kind, reason) in planted.items():
        found_level, found_reason = found.pop((str(tmp_path / "mine" / name), kind))
        assert found_level == level and reason in found_reason
        assert f"{tmp_path / 'mine' / name}: " in ended.out
    assert not found, "nothing else is wrong"
    told = ended.report["sets"]["labeled.mine"]
    assert (told["found"], told["checked"], told["wrong"]) == (16, 16, True)
    assert told["problems"] == {
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
    assert told["without_partner"] == ["depth/orphan", "images/alone"]
    assert told["without_depth"]["not finite"]["first"] == ["nan"]
    assert told["without_depth"]["negative"]["images"] == 2
    assert told["reasons"]["unreadable image"]["the file is empty (0 bytes)"] == 1


def test_the_report_does_not_depend_on_the_number_of_processes(check: Check, tmp_path: Path) -> None:
    plant(tmp_path / "mine")
    for i in range(40):
        write(tmp_path / "mine", f"more_{i}", whole(seed=100 + i))
    one, three = check(out="one"), check("workers=3", out="three")
    assert one.report == three.report
    assert one.problems == three.problems


@pytest.mark.slow
def test_nor_on_how_processes_start(check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path / "mine")
    forked = check(out="forked")
    monkeypatch.setattr(processes, "START_METHOD", "spawn")
    assert check("workers=2", out="spawned").report == forked.report


def test_a_missing_root_is_an_error_and_the_other_sets_are_checked(check: Check, tmp_path: Path) -> None:
    write(tmp_path / "mine", "a", whole())
    ended = check("data.val.mine.root=/no/such", f"data.unlabeled.mine.root={tmp_path / 'mine/images'}")
    assert ended.code == 1
    assert "error: val.mine: /no/such: no such folder" in ended.out
    assert ended.problems[0][:4] == ["error", "val.mine", "cannot be opened", "/no/such"]
    sets = ended.report["sets"]
    assert {name: told["checked"] for name, told in sets.items()} == {
        "labeled.mine": 1,
        "val.mine": 0,
        "unlabeled.mine": 1,
    }
    assert not sets["labeled.mine"]["wrong"]


def test_warnings_alone_leave_the_exit_code_0(check: Check, tmp_path: Path) -> None:
    write(tmp_path / "mine", "constant", np.full((6, 8), 4000, np.uint16))
    ended = check()
    assert ended.code == 0
    assert "warning: labeled.mine: constant depth: 1" in ended.out


def test_fewer_images_than_expected_are_a_warning_with_both_counts(check: Check, tmp_path: Path) -> None:
    for i in range(2):
        write(tmp_path / "mine", f"{i}", whole(seed=i))
    ended = check("data.labeled.mine._target_=test_check_data.HasExpectation", "~data.unlabeled.mine")
    assert ended.code == 0, ended.err
    assert "warning: labeled.mine: 2 images found, 5 expected" in ended.out
    assert ended.report["sets"]["labeled.mine"]["expected"] == 5


def test_a_gray_image_is_unreadable_or_counted_as_the_mixture_says(check: Check, tmp_path: Path) -> None:
    write(tmp_path / "mine", "a", whole())
    write(tmp_path / "mine", "b", whole())
    ramp = np.arange(48, dtype=np.uint8).reshape(6, 8)
    Image.fromarray(ramp).save(tmp_path / "mine/images/b.png")
    assert check().code == 1
    ended = check("data.convert_images=true")
    told = ended.report["sets"]["labeled.mine"]
    assert (ended.code, told["stored_as"]) == (0, {"L": 1, "RGB": 1})
    assert told["gray_images"] == {"images": 1, "first": ["b"]}
    assert "converted to RGB: 1 L" in ended.out


def test_a_limit_draws_the_same_images_again_and_others_with_another_seed(check: Check, tmp_path) -> None:
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


def test_sheets_show_good_pairs_of_every_shape_and_their_masks(check: Check, tmp_path: Path) -> None:
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


def test_ctrl_c_tells_what_was_checked_and_leaves_no_process(check: Check, tmp_path: Path) -> None:
    for i in range(100):
        write(tmp_path / "mine", f"{i:03d}", whole((2, 2), seed=i))
    ended = check(
        "data.unlabeled.mine._target_=test_check_data.InterruptsAtImage50",
        f"data.unlabeled.mine.root={tmp_path / 'mine/images'}",
    )
    assert ended.code == 130
    assert ended.err.splitlines() == [
        f"interrupted: {100 + ended.report['sets']['unlabeled.mine']['checked']} of 200 images were checked"
    ]
    assert 0 < ended.report["sets"]["unlabeled.mine"]["checked"] < 100
    assert "nothing is wrong so far: " in ended.out and not ended.report["complete"]
    assert not multiprocessing.active_children()


def test_a_killed_process_is_one_line_and_what_was_checked_is_told(check: Check, tmp_path: Path) -> None:
    for i in range(100):
        write(tmp_path / "mine", f"{i:03d}", whole((2, 2), seed=i))
    ended = check(
        "data.unlabeled.mine._target_=test_check_data.DiesAtImage50",
        f"data.unlabeled.mine.root={tmp_path / 'mine/images'}",
    )
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert "error: a checking process was killed, perhaps because memory ran out" in ended.err
    assert "unlabeled.mine was read, at or after " in ended.err
    assert ended.report["sets"]["labeled.mine"]["checked"] == 100
    assert not ended.report["complete"]
    assert not multiprocessing.active_children()


def test_a_defect_of_a_reader_is_a_line_for_its_file(check: Check, tmp_path: Path) -> None:
    for i in range(60):
        write(tmp_path / "mine", f"{i:02d}", whole((2, 2), seed=i))
    ended = check(
        "data.unlabeled.mine._target_=test_check_data.FailsAtImage50",
        f"data.unlabeled.mine.root={tmp_path / 'mine/images'}",
    )
    assert ended.code == 1
    assert [line[1:] for line in ended.problems if line[1] == "unlabeled.mine"] == [
        [
            "unlabeled.mine",
            "unreadable image",
            str(tmp_path / "mine/images/50.png"),
            "KeyError: 'no such key'",
        ]
    ]
    assert ended.report["sets"]["unlabeled.mine"]["checked"] == 60


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processes_end_with_the_one_that_started_them_even_if_it_is_killed(tmp_path: Path) -> None:
    for i in range(2000):
        write(tmp_path / "mine", f"{i:04d}", whole((2, 2), seed=i))
    words = [
        "data=folder",
        f"data.labeled.mine.root={tmp_path / 'mine'}",
        "workers=2",
        f"out={tmp_path / 'o'}",
    ]
    with subprocess.Popen([sys.executable, "-m", "depthany.check_data", *words]) as main_process:
        task = Path(f"/proc/{main_process.pid}/task/{main_process.pid}/children")
        until = time.monotonic() + 60
        while len(children := task.read_text().split()) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert len(children) == 2
        main_process.kill()
    while any(_runs(int(pid)) for pid in children) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(_runs(int(pid)) for pid in children)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class HasExpectation(FolderImages):
    """A set that knows how many images there should be."""

    expected = 5

    def __init__(self, root: str, **_: object) -> None:
        super().__init__(f"{root}/images")


class Trap(FolderImages):
    """Something happens as image 50 is read."""

    def stored_image(self, index: int) -> bytes:
        if index == 50:
            self.spring()
        return super().stored_image(index)

    def spring(self) -> None:
        raise NotImplementedError


class InterruptsAtImage50(Trap):
    def spring(self) -> None:
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(0.5)


class DiesAtImage50(Trap):
    def spring(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class FailsAtImage50(Trap):
    def spring(self) -> None:
        raise KeyError("no such key")


def test_percentiles_are_within_a_thousandth_of_numpys_and_parts_add_up() -> None:
    values = np.random.default_rng(0).lognormal(1.0, 2.0, 20_000).astype(np.float32)
    once, added = DepthHistogram(), DepthHistogram()
    once.add(values)
    for start in range(0, len(values), 3000):
        part = DepthHistogram()
        part.add(values[start : start + 3000])
        added.merge(part.packed())
    assert np.array_equal(once.counts, added.counts)
    assert (added.low, added.high) == (values.min(), values.max())
    for percent in (0, 1, 50, 93.75, 100):
        expected = np.percentile(values, percent, method="inverted_cdf")
        assert added.percentile(percent) == pytest.approx(expected, rel=1e-3)


def test_a_disparity_of_0_is_counted_below_all_octaves() -> None:
    histogram = DepthHistogram()
    histogram.add(np.array([0.0, -0.0, 0.5, 0.75, 3.0], np.float32))
    assert histogram.zeros == 2
    assert histogram.octaves() == [(0.5, 1.0, 2), (1.0, 2.0, 0), (2.0, 4.0, 1)]
    assert (histogram.percentile(40), histogram.low, histogram.high) == (0.0, 0.0, 3.0)
    assert math.isnan(DepthHistogram().percentile(50))


def test_the_default_command_finds_nothing_wrong_with_the_sample(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert {name: told["checked"] for name, told in sets.items()} == {
        "labeled.sample": 10,
        "val.labeled_rooms": 5,
        "val.labeled_streets": 5,
        "val.unlabeled_rooms": 5,
        "val.unlabeled_streets": 5,
        "unlabeled.sample": 10,
    }
    assert sets["val.labeled_rooms"]["sky_share"] == 0 < sets["val.labeled_streets"]["sky_share"]
    assert all(told["valid_share"]["mean"] == 1 for name, told in sets.items() if name != "unlabeled.sample")
    assert len(list(out.glob("contact_*.jpg"))) == 6


MISTAKES = {
    "limit=0": "limit=0: expected 1 or more",
    "workers=0": "workers=0: expected 1 or more",
    "seed=-1": "seed=-1: expected 0 or more",
    "sheet_images=-1": "sheet_images=-1: expected 0 or more",
    "min_valid_share=2": "min_valid_share=2.0: expected a share between 0 and 1",
    "limit=few": "limit: Value 'few'",
    "limmit=3": "unknown setting 'limmit'; did you mean limit?",
    "data=nothing": "unknown data 'nothing'; choose from folder, sample",
    "data.labeled.mine._target_=depthany.data.labeled.Folder": "Error locating target",
    "+data.labeled.more.root=a": "data.labeled.more: expected a data set with a _target_",
    "data.labeled.mine.root=???": "no set has a root: give one of data.labeled.mine.root=...",
    "out=/proc/none": "cannot write into out=/proc/none",
    "data.labeled.mine.max_dept=3": "unknown setting 'data.labeled.mine.max_dept'; did you mean",
}


@pytest.mark.parametrize("mistake, expected", MISTAKES.items(), ids=MISTAKES)
def test_a_mistake_ends_in_one_line(check: Check, tmp_path: Path, mistake: str, expected: str) -> None:
    write(tmp_path / "mine", "a", whole())
    ended = check(mistake)
    assert ended.code == 2
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1
    assert expected in ended.err


def test_every_setting_is_read_somewhere() -> None:
    code = (ROOT / "src/depthany/check_data.py").read_text()
    for each in fields(schema.CheckDataSettings):
        assert f"cfg.{each.name}" in code, f"{each.name} is never read"


def test_help_shows_commands_settings_and_exit_codes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "depthany.check_data", "--help"], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    for part in ("data: folder, sample", "min_valid_share: 0.01", "Exit code: 0", "data=depth_anything_v1"):
        assert part in done.stdout
    assert not list(tmp_path.iterdir())
