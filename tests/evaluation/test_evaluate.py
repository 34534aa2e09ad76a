"""`python -m depthany.evaluate`: its files, its protocols, and one line for bad input."""

import base64
import csv
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from depthany.config.entry import run_entry
from depthany.data.folder_depth import FolderDepth
from depthany.evaluate import ALIASES, SEVERAL, run
from depthany.evaluation import run as loop
from depthany.evaluation.open_predictors import labels_of
from depthany.evaluation.protocol_files import protocol_names
from depthany.models.files.loading import load_model
from depthany.models.model import build_model, depth_anything, save_model
from depthany.system import files
from depthany.training.validation import evaluate

pytestmark = pytest.mark.usefixtures("micro")
QUICK = ["device=cpu", "threads=1", "workers=1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, with_micro) -> Path:
    """Folder of two random models, `a` and `b`, and a metric one, `metric`."""
    folder = tmp_path_factory.mktemp("models")
    with with_micro():
        for seed, (name, max_depth) in enumerate({"a": None, "b": None, "metric": 10.0}.items()):
            torch.manual_seed(seed)
            save_model(depth_anything("micro", max_depth_m=max_depth, input_size=28), folder / name)
    return folder


@pytest.fixture
def garden(tmp_path: Path) -> Path:
    """Six pairs of image and depth in mm; depth follows the image's red."""
    root = tmp_path / "garden"
    for i in range(6):
        draw = np.random.default_rng(i)
        image = draw.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        write(root / "images" / f"{i}.png", image)
        write(root / "depth" / f"{i}.png", (1000 + 20 * image[:, :, 0].astype(np.uint16)).astype(np.uint16))
    return root


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Callable]:
    """Runs the command in this process, into tmp_path/out; returns exit code, stdout and stderr."""

    def evaluate(*words: object) -> tuple[int, str, str]:
        arguments = [f"out={tmp_path / 'out'}", *QUICK, *map(str, words)]
        if any(word.startswith(("protocol=folder", "protocol=all")) for word in arguments):
            arguments.append("folder.depth_scale=1000")
        monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
        code = run_entry("evaluate", run, several=SEVERAL, aliases=ALIASES)
        told = capsys.readouterr()
        return code, told.out, told.err

    return evaluate


def results(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "out" / "results.json").read_text())


def test_two_checkpoints_get_table_files_and_report(
    runs: Path, garden: Path, start: Callable, tmp_path: Path
) -> None:
    code, out, err = start(
        f"checkpoint={runs}/a,{runs}/b", "protocol=folder", f"roots.mine={garden}", "pictures=1"
    )
    assert code == 0, err
    found = results(tmp_path)
    assert found["complete"] is True
    assert found["checkpoints"]["a"]["weights_sha256"] != found["checkpoints"]["b"]["weights_sha256"]
    folder = found["protocols"]["folder"]
    assert folder["settings"]["align"] == "least_squares"
    assert folder["settings"]["sources"]
    with open(tmp_path / "out" / "per_image.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    for label in "ab":
        mean = np.mean([float(row["abs_rel"]) for row in rows if row["checkpoint"] == label])
        assert folder["scores"][label]["mean"]["abs_rel"] == pytest.approx(mean, rel=1e-12)
        assert f"{mean:.4f}" in out
    gap = folder["scores"]["b"]["mean"]["abs_rel"] - folder["scores"]["a"]["mean"]["abs_rel"]
    assert folder["differences"]["b - a"]["values"]["abs_rel"] == pytest.approx(gap)
    low, high = folder["differences"]["b - a"]["intervals"]["abs_rel"]
    assert low <= gap <= high
    page = (tmp_path / "out" / "report.html").read_text()
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    # best, median, worst: input, truth, 2 x two maps, and edges enlarged: input, truth, two maps
    assert len(re.findall(r"<img ", page)) == 3 * (2 + 2 * 2 + 4)
    assert re.findall(r"<figcaption>edges 1: (\w+)", page) == 3 * ["input", "truth", "a", "b"]
    first = re.search(r"data:image/jpeg;base64,([^\"]+)", page)
    assert first is not None
    assert base64.b64decode(first[1]).startswith(b"\xff\xd8")


def test_command_and_validation_agree(runs: Path, garden: Path, start: Callable, tmp_path: Path) -> None:
    code, _, err = start(f"checkpoint={runs}/a", "protocol=folder", f"roots.mine={garden}", "pictures=0")
    assert code == 0, err
    sets = {"garden": FolderDepth(str(garden), depth_scale=1000)}
    expected = evaluate(load_model(runs / "a"), sets, 28)["garden"]
    found = results(tmp_path)["protocols"]["folder"]["scores"]["a"]
    assert found["images"] == expected["images"]
    for name in ("abs_rel", "delta1"):  # the command folds layers together, which changes the rounding
        assert found["mean"][name] == pytest.approx(expected[name], rel=1e-4)


def test_own_protocol_needs_four_lines_of_yaml(
    runs: Path, garden: Path, start: Callable, tmp_path: Path
) -> None:
    own = tmp_path / "garden.yaml"
    own.write_text(f"dataset:\n  root: {garden}\n  depth_scale: 500\nmax_depth: 9\n")
    code, _, err = start(f"checkpoint={runs}/a", f"protocol={own}", "pictures=0")
    assert code == 0, err
    found = results(tmp_path)["protocols"]["garden"]
    assert found["dataset"]["depth_scale"] == 500
    assert found["settings"]["max_depth"] == 9
    assert found["scores"]["a"]["images"] == 6
    assert not (tmp_path / "out" / "report.html").exists()


def test_exact_prediction_files_score_zero(garden: Path, start: Callable, tmp_path: Path) -> None:
    for i in range(5):
        depth_m = np.asarray(Image.open(garden / "depth" / f"{i}.png")) / 1000
        (tmp_path / "exact").mkdir(exist_ok=True)
        np.save(tmp_path / "exact" / f"{i}.npy", 0.5 / depth_m + 3)
    words = [f"checkpoint={tmp_path / 'exact'}", "protocol=folder", f"roots.mine={garden}"]
    code, out, err = start(*words, "quantity=disparity")
    assert code == 0, err
    scores = results(tmp_path)["protocols"]["folder"]["scores"]["exact"]
    assert scores["mean"]["abs_rel"] == pytest.approx(0, abs=1e-5)
    assert scores["partial"] is True
    assert scores["without_prediction"] == ["5"]
    assert "1 without prediction, left out: 5" in out
    code, _, err = start(*words)
    assert (code, err.count("\n")) == (2, 1)
    assert "is a folder of predictions: pass quantity=disparity" in err


def test_float_truth_is_in_metres(start: Callable, tmp_path: Path) -> None:
    for i in range(3):
        depth_m = np.random.default_rng(i).uniform(0.17, 3.1, (30, 40)).astype(np.float32)
        write(tmp_path / f"room/images/{i}.png", np.full((30, 40, 3), 90, np.uint8))
        for folder in ("room/depth", "exact"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            np.save(tmp_path / folder / f"{i}.npy", depth_m)
    own = tmp_path / "room.yaml"
    own.write_text(f"dataset: {{root: {tmp_path / 'room'}}}\nalign: none\n")
    words = [f"checkpoint={tmp_path / 'exact'}", "quantity=depth", f"protocol={own}", "pictures=0"]
    code, out, err = start(*words)
    assert code == 0, err
    found = results(tmp_path)
    assert found["protocols"]["room"]["scores"]["exact"]["mean"]["abs_rel"] == pytest.approx(0, abs=1e-6)
    assert found["warnings"] == [] and "warning" not in out
    code, out, err = start(*words, "folder.depth_scale=1000")
    assert code == 0, err
    (line,) = results(tmp_path)["warnings"]
    assert line.startswith("protocol room: the median of the known depth is 0.00166 m, nearer than 5 cm")
    assert line.endswith("look like metres: depth_scale=1") and f"warning: {line}" in out


@pytest.mark.parametrize(
    "written, word, message",
    [
        ("", "", "depth is stored as uint16.* set depth_scale=1000 .*(here it is folder.depth_scale=...)"),
        ("depth_scale: 500", "folder.depth_scale=1000", "folder.depth_scale=1000: no chosen protocol leaves"),
        ("quantity: disparity", "", "its labels are disparity of unknown scale, but predictions are scored"),
        ("", "folder.depth_scal=3", "did you mean folder.depth_scale"),
    ],
)
def test_truth_without_metres_is_refused(
    runs: Path, garden: Path, start: Callable, tmp_path: Path, written: str, word: str, message: str
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(f"dataset:\n  root: {garden}\n  {written}\n")
    words = [f"checkpoint={runs}/a", f"protocol={own}", "pictures=0", *([word] if word else [])]
    code, _, err = start(*words)
    assert (code, err.count("\n")) == (2, 1)
    assert re.search(message, err)


def test_limit_is_partial_and_override_is_changed(
    runs: Path, garden: Path, start: Callable, tmp_path: Path
) -> None:
    words = [f"checkpoint={runs}/a", "protocol=folder", f"roots.mine={garden}", "pictures=0"]
    code, out, err = start(*words, "limit=2", "override.align=median")
    assert code == 0, err
    assert "2 of 6" in out
    assert "folder (changed)" in out
    found = results(tmp_path)["protocols"]["folder"]
    assert found["scores"]["a"]["partial"] is True
    assert found["changed_by_the_user"] == {"align": "median"}


def test_results_of_a_run_are_not_replaced(runs: Path, garden: Path, start: Callable, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/results.json").write_text('{"step": 6, "scores": {}}')
    code, _, err = start(f"checkpoint={runs}/a", "protocol=folder", f"roots.mine={garden}")
    assert code == 2
    assert "holds results.json, which no earlier call of this command wrote" in err
    assert "scores" in (tmp_path / "out/results.json").read_text()


def test_protocol_all_lists_missing_data(
    runs: Path, garden: Path, start: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "checkout_dir", lambda: None)  # a package alone, without data/sample
    code, out, err = start(f"checkpoint={runs}/a", "protocol=all", f"roots.mine={garden}", "pictures=0")
    assert code == 0, err
    assert list(results(tmp_path)["protocols"]) == ["folder"]
    assert "sample_test_rooms, sample_test_streets" in out
    assert f": not run, there is no data/sample in {tmp_path}: an installed package does not contain" in out
    assert set(results(tmp_path)["not_run"]) == set(protocol_names()) - {"folder"}


def test_sample_protocols_find_fifty_images(runs: Path, start: Callable, tmp_path: Path) -> None:
    of_sample = {name for name in protocol_names() if name.startswith("sample_")}
    relative = {name for name in of_sample if "metric" not in name and "classes" not in name}
    metric = {name for name in protocol_names() if name.startswith("sample_metric_")}
    assert (len(relative), len(metric)) == (6, 6)
    for model, words, wanted in (("a", "sample_*", relative), ("metric", "sample_metric_*", metric)):
        code, out, err = start(f"checkpoint={runs}/{model}", f"protocol={words}", "pictures=0", "limit=1")
        assert code == 0, err
        found = results(tmp_path)
        assert set(found["protocols"]) == wanted
        assert all(each["images_in_set"] == 50 for each in found["protocols"].values())
        assert set(found["not_run"]) == (of_sample - wanted if model == "a" else set())
        assert ("not run, as they score what a predictor does not predict: sample_" in out) is (model == "a")


def test_only_metric_models_are_scored_without_alignment(
    runs: Path, garden: Path, start: Callable, tmp_path: Path
) -> None:
    words = ["protocol=folder", f"roots.mine={garden}", "override.align=none", "pictures=1"]
    code, out, err = start(f"checkpoint={runs}/metric", *words)
    assert code == 0, err
    scores = results(tmp_path)["protocols"]["folder"]["scores"]["metric"]
    after = scores["after_alignment"]
    assert after["means"]["median"]["abs_rel"] < scores["mean"]["abs_rel"]
    for text in (out, (tmp_path / "out" / "report.html").read_text()):
        assert "scale corrected" in text and f"{after['means']['median']['abs_rel']:.4f}" in text
        assert "of the error is scale" in text
    assert "predicts 10 m at most, but ground truth counts up to 80 m" in out
    with open(tmp_path / "out" / "per_image.csv") as file:
        rows = list(csv.DictReader(file))
    mean = np.mean([float(row["abs_rel_after_median"]) for row in rows])
    assert after["means"]["median"]["abs_rel"] == pytest.approx(mean)
    assert after["median_scale"] == pytest.approx(np.median([float(row["median_scale"]) for row in rows]))
    code, _, err = start(f"checkpoint={runs}/a", *words)
    assert (code, err.count("\n")) == (2, 1)
    assert "a predicts disparity of unknown scale" in err


def test_unbounded_bins_are_scored_in_metres(garden: Path, start: Callable, tmp_path: Path) -> None:
    encoder = {"name": "dinov2", "size": "micro", "taps": "v1"}
    torch.manual_seed(0)
    model = build_model(encoder, head={"name": "metric_bins"}, input_size=28, trained_on={"sets": ["rooms"]})
    assert model.quantity.max_depth_m is None
    save_model(model, tmp_path / "bins")
    words = ["protocol=folder", f"roots.mine={garden}", "override.align=none", "pictures=0"]
    code, out, err = start(f"checkpoint={tmp_path}/bins", *words)
    assert code == 0, err
    assert "bins (depth in metres" in out and "from rooms)" in out
    assert "after_alignment" in results(tmp_path)["protocols"]["folder"]["scores"]["bins"]


def break_root(garden: Path) -> list[str]:
    return [f"roots.mine={garden}/nowhere"]


def break_half(garden: Path) -> list[str]:
    (garden / "depth" / "3.png").unlink()
    return []


def break_zero(garden: Path) -> list[str]:
    write(garden / "depth" / "2.png", np.zeros((30, 40), np.uint16))
    return []


def break_nan(garden: Path) -> list[str]:
    (garden / "depth" / "2.png").unlink()
    np.save(garden / "depth" / "2.npy", np.where(np.eye(30, 40) > 0, np.nan, -1.0))
    return []


def break_size(garden: Path) -> list[str]:
    write(garden / "depth" / "2.png", np.full((20, 20), 2000, np.uint16))
    return []


def break_image(garden: Path) -> list[str]:
    (garden / "images" / "2.png").write_bytes(b"\x89PNG half")
    return []


@pytest.mark.parametrize(
    "damage, message",
    [
        (break_root, "garden/nowhere: no such folder"),
        (break_half, r"1 file\(s\) without partner \(5 complete pairs\), the first: images/3"),
        (break_zero, r"depth/2\.png: no valid pixel"),
        (break_nan, r"depth/2\.npy: no valid pixel"),
        (break_size, r"depth/2\.png: depth is 20x20, its image .*2\.png is 40x30"),
        (break_image, r"images/2\.png: not an image.*skip_unreadable=true"),
        (lambda _: ["override.count=7"], r"folder has 7 images, but .*garden has 6: .*override\.count=6"),
        (
            lambda _: ["protocol=nyu"],
            "unknown protocol 'nyu'; choose from all, .*folder, .*sample_test_rooms",
        ),
        (lambda _: ["protocol=mine.yaml"], r"protocols=mine\.yaml: no such file"),
        (lambda _: ["roots.mine=null"], r"protocol folder: its data is not there: pass roots\.mine="),
        (lambda _: ["override.align=magic"], "unknown align 'magic'; choose from least_squares"),
        (lambda _: ["override.count=few"], "override.count: Value 'few'"),
        (lambda _: ["+override.foo=1"], "override.foo: Key 'foo' not in"),
        (lambda _: ["protocol=folder,folder"], "protocols=folder,folder: folder is given twice"),
        (lambda _: ["stored_per_unit=0"], "stored_per_unit=0.0: expected more than 0"),
        (lambda _: ["quantity=depths"], "unknown quantity 'depths'; choose from disparity, depth"),
        (
            lambda _: ["override.crop=eigen_nyu"],
            "crop=eigen_nyu is defined for maps of 640x480, this one is 40x30",
        ),
        (lambda _: ["checkpoint=nowhere"], "nowhere does not exist"),
        (lambda _: ["quantity=disparity"], "no checkpoint is one"),
        (lambda _: ["batch_size=0"], "batch_size=0: expected 1 or more"),
        (lambda _: ["limit=0"], "limit=0: expected 1 or more"),
        (lambda _: ["roots.mien=x", "x=1"], "unknown setting 'roots.mien'; did you mean roots.mine?"),
    ],
)
def test_bad_input_ends_in_one_line(
    runs: Path, garden: Path, start: Callable, damage: Callable, message: str
) -> None:
    words = [f"checkpoint={runs}/a", "protocol=folder", f"roots.mine={garden}", "pictures=0"]
    code, _, err = start(*words, *damage(garden))
    assert code == 2
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert re.search(message, err), err


def test_misspelt_setting_in_own_protocol_is_refused(
    runs: Path, garden: Path, start: Callable, tmp_path: Path
) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(f"dataset: {{root: {garden}}}\nalignment: median\n")
    code, _, err = start(f"checkpoint={runs}/a", f"protocol={own}")
    assert (code, err.count("\n")) == (2, 1)
    assert "alignment" in err
    assert "mine.yaml" in err


def test_unreadable_images_are_skipped_on_demand(
    runs: Path, garden: Path, start: Callable, tmp_path: Path
) -> None:
    break_image(garden)
    break_zero(garden)
    (garden / "images" / "4.png").write_bytes(b"")
    words = ["protocol=folder", f"roots.mine={garden}", "skip_unreadable=true", "pictures=1"]
    code, out, err = start(f"checkpoint={runs}/a", *words)
    assert code == 0, err
    scores = results(tmp_path)["protocols"]["folder"]["scores"]["a"]
    assert scores["images"] == 4
    assert len(scores["unreadable"]) == 2
    assert "2 unreadable, left out" in out


def test_ctrl_c_keeps_the_complete_protocols(
    runs: Path, garden: Path, start: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "second.yaml"
    own.write_text(f"dataset: {{root: {garden}, depth_scale: 1000}}\n")
    predict = loop.predict_at_truth

    def interrupted(predictor, images, protocol):  # the signal arrives while the second protocol is scored
        if protocol.name == "second":
            raise KeyboardInterrupt
        return predict(predictor, images, protocol)

    monkeypatch.setattr(loop, "predict_at_truth", interrupted)
    words = [f"checkpoint={runs}/a", f"protocol=folder,{own}", f"roots.mine={garden}", "pictures=0"]
    code, out, _ = start(*words)
    assert code == 130
    assert "1 of 2 protocols are done" in out
    found = results(tmp_path)
    assert found["complete"] is False
    assert list(found["protocols"]) == ["folder"]


def test_labels_are_the_shortest_distinct_path_ends() -> None:
    assert labels_of(["outputs/teacher", "outputs/student"]) == ["teacher", "student"]
    assert labels_of(["one/student", "two/student"]) == ["one/student", "two/student"]


def test_help_shows_how_to_begin_and_every_setting(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", "--help"])
    assert run_entry("evaluate", run, several=SEVERAL, aliases=ALIASES) == 0
    told = capsys.readouterr().out
    assert "checkpoint=outputs/student protocols='sample_*'" in told
    assert all(f"{name}:" in told for name in ("checkpoint", "protocols", "quantity", "limit", "align_per"))
