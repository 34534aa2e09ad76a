"""Weights and classes that changed under the same name are noticed, in killed runs and in finished ones."""

import json
import shutil
from pathlib import Path

import hydra
import pytest
import torch
import yaml
from safetensors.torch import save_file

from depthany import load_model
from depthany.config.entry import config_dir
from depthany.models.files.weights import encoder_file_sha256, weights_sha256
from depthany.models.model import save_model
from depthany.training import checks
from depthany.training.inputs import hash_weights

CHANGED = "the weights there have changed since the run began"
SHORT = ("steps=2", "eval_every=0", "data.val.mine.root=null", "schedule.name=constant")
METRIC = ("data.labeled.mine.max_depth=10", "head=sigmoid")


@pytest.fixture
def teacher(teacher_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished teacher run, for a test to change."""
    return shutil.copytree(teacher_run, tmp_path / "teacher")


def train_anew(run_dir: Path) -> None:
    """Puts other weights at the same path."""
    model = load_model(run_dir)
    with torch.no_grad():
        model.head.conv3.bias.add_(1e-3)
    save_model(model, run_dir)


def interrupt(run_dir: Path) -> None:
    """Makes a finished run one that was killed after its last checkpoint."""
    (run_dir / "model.safetensors").unlink()


def forget(run_dir: Path, *keys: str) -> None:
    """Leaves out of the notes of a run what older versions did not note."""
    settings = yaml.safe_load((run_dir / "settings.yaml").read_text())
    config = json.loads((run_dir / "config.json").read_text())
    for notes in (settings, config["training"]["settings"]):
        for key in keys:
            del notes[key]
    (run_dir / "settings.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    (run_dir / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("labels", ["online", "once"])
def test_student_of_a_teacher_trained_anew_is_refused(
    start, tiny_world, teacher: Path, tmp_path: Path, micro: str, labels: str
) -> None:
    run_dir = tmp_path / "run"
    more = (f"stage.teacher={teacher}", f"pseudo_labels={labels}", *SHORT)
    command = tiny_world.settings("student", run_dir, *more)
    assert start(command).code == 0
    shutil.copytree(teacher, tmp_path / "old")
    train_anew(teacher)
    finished, longer = start(command), start([*command, "steps=3"])
    for ended in (finished, longer):
        assert ended.code == 1 and ended.err.count("\n") == 1 and "with these settings" not in ended.out
        assert f"what is learned: stage.teacher={teacher}: {CHANGED}" in ended.err
        assert "another run_dir, or overwrite=true, or its own settings and files to continue" in ended.err
    interrupt(run_dir)
    killed = start([*command, "steps=3"])
    assert (killed.code, CHANGED in killed.err) == (2, True)
    shutil.rmtree(teacher)
    shutil.copytree(tmp_path / "old", teacher)
    ended = start([*command, "steps=3"])
    assert ended.code == 0 and "continuing at step 2 of 3" in ended.out, ended.err


def test_finished_student_does_not_need_its_teacher(
    start, tiny_world, teacher: Path, tmp_path: Path, micro: str
) -> None:
    command = tiny_world.settings("student", tmp_path / "run", f"stage.teacher={teacher}", *SHORT)
    assert start(command).code == 0
    interrupt(teacher)  # it trains on
    ended = start(command)
    assert ended.code == 0 and "holds a finished run with these settings" in ended.out, ended.err


def test_start_trained_anew_is_refused(start, tiny_world, teacher: Path, tmp_path: Path, micro: str) -> None:
    command = tiny_world.settings("metric", tmp_path / "run", f"model.init={teacher}", *METRIC, *SHORT)
    assert start(command).code == 0
    assert "holds a finished run with these settings" in start(command).out
    train_anew(teacher)
    ended = start(command)
    assert (ended.code, ended.out) == (1, "")
    assert "holds a finished run with other settings or data" in ended.err
    assert ended.err.endswith(f"what is learned: model.init={teacher}: {CHANGED}\n")


def test_older_run_continues_with_a_warning(
    start, tiny_world, teacher: Path, tmp_path: Path, micro: str
) -> None:
    run_dir = tmp_path / "run"
    command = tiny_world.settings("student", run_dir, f"stage.teacher={teacher}", *SHORT)
    assert start(command).code == 0
    forget(run_dir, "weights_found")
    assert "holds a finished run with these settings" in start(command).out
    ended = start([*command, "steps=3"])
    assert ended.code == 0, ended.err
    line = "warning: the run noted no hash of its weights: no change of stage.teacher is noticed"
    assert line in ended.out
    train_anew(teacher)
    assert CHANGED in start([*command, "steps=4"]).err, "it is noted from then on"


def test_hash_covers_all_weights_that_are_read(
    tiny_world, teacher_run: Path, tmp_path: Path, micro: str
) -> None:
    encoder = tmp_path / "encoder.safetensors"
    save_file(load_model(teacher_run).encoder.state_dict(), encoder)
    start_at, aligned = (f"model.weights={encoder}", "model.pretrained=true"), "stage.feature_alignment"
    aligned_to = (f"{aligned}.encoder={micro}", f"{aligned}.weights={encoder}")

    def of(*more: str) -> dict[str, str]:
        with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
            words = tiny_world.settings("student", tmp_path, f"stage.teacher={teacher_run}", *more)
            return hash_weights(checks.check(hydra.compose("train", words)))

    found = of(*start_at, *aligned_to)
    assert found == {
        "stage.teacher": weights_sha256(load_model(teacher_run)),
        "stage.feature_alignment.weights": encoder_file_sha256(encoder),
        "model.weights": encoder_file_sha256(encoder),
    }
    assert list(of(*start_at, *aligned_to, "stage.weights.feature=0")) == ["stage.teacher", "model.weights"]
    assert list(of(*start_at, f"model.init={teacher_run}")) == ["stage.teacher", "model.init"]


def write_classes(root: Path, *rows: str) -> None:
    (root / "classes.yaml").write_text("\n".join(["classes:", *(f"  - {row}" for row in rows)]) + "\n")


@pytest.mark.parametrize("end", ["finished", "killed"])
def test_masks_with_other_classes_are_refused(start, own_world, tmp_path: Path, micro: str, end: str) -> None:
    root, run_dir = own_world.root / "labeled", tmp_path / "run"
    command = own_world.settings("segmentation", run_dir, *SHORT)
    write_classes(root, "{name: road, ids: 0}", "{name: car, ids: 1}", "{name: sky, ids: 2}")
    assert start(command).code == 0
    if end == "killed":
        interrupt(run_dir)
    write_classes(root, "{name: sky, ids: 2}", "{name: road, ids: 0}", "{name: car, ids: 1}")
    ended = start(command)
    assert ended.code == (1 if end == "finished" else 2) and ended.err.count("\n") == 1
    line = "the classes of data.labeled.mine: class 0: road (stored as 0) -> sky (stored as 2), and 2 more\n"
    assert ended.err.endswith(f"what is learned: {line}")
    write_classes(root, "{name: road, rgb: [9, 9, 9], ids: [0]}", "car", "sky")
    ended = start(command)  # other colours mean the same
    assert ended.code == 0, ended.err


def test_finished_run_needs_no_masks(start, own_world, tmp_path: Path) -> None:
    command = own_world.settings("segmentation", tmp_path / "run", *SHORT)
    assert start(command).code == 0
    shutil.rmtree(own_world.root / "labeled")
    ended = start(command)
    assert (ended.code, "holds a finished run with these settings" in ended.out) == (0, True)
