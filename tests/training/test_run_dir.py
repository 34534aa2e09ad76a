"""The folder of a run: what is never touched, when a finished run continues, and when it does not."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from depthany.models.model import depth_anything
from depthany.training import run_dir as runs
from depthany.training.checkpoints.state import TrainingState
from depthany.training.optim import OptimizerSettings, build_optimizer
from depthany.training.stages.base import Stage

pytestmark = pytest.mark.usefixtures("micro")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def make_run(folder: Path, model_steps: int | None, checkpoint: int | None = 6, **began: Any) -> Path:
    """A folder as a run leaves it, its settings alone with content."""
    settings = {"run_dir": str(folder), "stage": {"name": "teacher"}, "seed": 0, "steps": 6}
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings | began))
    if checkpoint is not None:
        (folder / f"checkpoints/step_{checkpoint:08d}.pt").touch()
    if model_steps is not None:
        training = {"step": model_steps, "settings": settings}
        (folder / "config.json").write_text(json.dumps({"training": training}))
        (folder / "model.safetensors").touch()
    return folder


def asked(**more: Any) -> dict[str, Any]:
    return {"run_dir": "now", "stage": {"name": "teacher"}, "seed": 0, "steps": 6} | more


@pytest.mark.parametrize("overwrite", ["false", "true"])
def test_folder_of_others_is_not_touched(start, tiny_world, tmp_path: Path, overwrite: str) -> None:
    folder = tmp_path / "mine"
    for name in ("model.safetensors", "config.json", "notes.txt", "checkpoints/step_00000010.pt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    before = tree(folder)
    ended = start(tiny_world.settings("teacher", folder, f"overwrite={overwrite}"))
    assert ended.code == 2
    what = "checkpoints/step_00000010.pt, model.safetensors, config.json but no settings.yaml of a run"
    assert re.fullmatch(rf"error: run_dir=\S+ holds {what}: .*\n", ended.err)
    assert tree(folder) == before


@pytest.mark.parametrize("name", ["settings.yaml", "results.json", "metrics.jsonl", "checkpoints/best.pt"])
def test_any_file_of_a_runs_names_is_foreign(tmp_path: Path, name: str) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    runs.require_own(tmp_path, overwrite=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"holds {name} but no settings.yaml of a run"):
        runs.require_own(tmp_path, overwrite=False)


@pytest.mark.parametrize("place", ["current", "parent", "home"])
def test_overwrite_refuses_current_folder_and_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    folder = make_run(tmp_path / "run", 6)
    inside = folder if place == "current" else folder / "below"
    inside.mkdir(exist_ok=True)
    if place == "home":
        monkeypatch.setenv("HOME", str(inside))
    else:
        monkeypatch.chdir(inside)
    name = "home" if place == "home" else "current folder"
    with pytest.raises(ValueError, match=f"is or holds the {name}, and overwrite=true deletes"):
        runs.require_own(folder, overwrite=True)
    runs.require_own(folder, overwrite=False)


def test_clear_deletes_only_what_runs_write(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 6)
    kept = [folder / name for name in ("notes.txt", "checkpoints/step_mine.pt", "checkpoints/epoch_1.pt")]
    for path in kept:
        path.write_text("mine")
    runs.clear(folder)
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == sorted(kept)


def test_finished_run_of_equal_settings_is_complete(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 6)
    assert runs.is_complete(folder, asked(workers=2), {"workers": 0}) is not None
    assert runs.claim(folder, asked(workers=2), {"workers": 0}, total_steps=6) is None
    assert runs.is_complete(tmp_path / "new", asked(), {}) is None


def test_killed_continuation_continues_again(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 6, checkpoint=8, steps=9)
    assert runs.is_complete(folder, asked(steps=9), {}) is None
    assert runs.claim(folder, asked(steps=9), {}, total_steps=9) == runs.Changes(names_known=False)
    assert runs.is_complete(folder, asked(steps=6), {}) is not None, "the shorter model is there"


def test_model_that_stopped_early_is_complete(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 4, checkpoint=4)
    assert runs.claim(folder, asked(), {}, total_steps=6) is None


@pytest.mark.parametrize(
    "model_steps, checkpoint, steps, words",
    [
        (6, 6, 4, r"holds a run of 6 steps, but 4 are asked for \(steps: 6 -> 4\)"),
        (None, 6, 4, r"holds a run of 6 steps, but 4 are asked for"),
        (6, None, 9, "finished run of 6 steps without its checkpoints"),
    ],
)
def test_run_that_cannot_have_this_length_is_refused(
    tmp_path: Path, model_steps: int | None, checkpoint: int | None, steps: int, words: str
) -> None:
    folder = make_run(tmp_path / "run", model_steps, checkpoint)
    before = tree(folder)
    with pytest.raises(ValueError, match=words) as refused:
        runs.claim(folder, asked(steps=steps), {}, total_steps=steps)
    assert isinstance(refused.value, runs.FinishedRun) == (model_steps is not None)
    assert tree(folder) == before


def test_longer_run_continues_to_same_bits(start, tiny_world, tmp_path: Path) -> None:
    constant = "schedule.name=constant"
    for name, steps in (("whole", 9), ("continued", 6), ("continued", 9)):
        ended = start(tiny_world.settings("teacher", tmp_path / name, constant, f"steps={steps}"))
        assert ended.code == 0, ended.err
    assert "continuing at step 6 of 9" in ended.out
    assert "continuing with other settings: steps: 6 -> 9" in ended.out
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "continued")]
    assert weights[0] == weights[1]
    lines = (tmp_path / "continued/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if "loss/total" in line] == [*range(1, 10)]
    assert json.loads((tmp_path / "continued/results.json").read_text())["step"] == 9


def test_run_continues_elsewhere_with_other_means(
    start, tiny_world, teacher_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(teacher_run, tmp_path / "run")
    shutil.copytree(tiny_world.root / "labeled", tmp_path / "moved")
    more = (
        "steps=8",
        "precision=bf16",
        "workers=1",
        "eval_every=0",
        "data.val.mine.root=null",
        f"data.labeled.mine.root={tmp_path / 'moved'}",
    )
    ended = start(tiny_world.settings("teacher", tmp_path / "run", *more))
    assert ended.code == 0, ended.err
    assert "continuing with other settings: data.labeled.mine.root: " in ended.out
    assert "precision: fp32 -> bf16" in ended.out
    assert "schedule=poly spans all 8 steps: the learning rate goes on at 0.25 of its largest" in ended.out
    newest = torch.load(tmp_path / "run/checkpoints/step_00000008.pt", weights_only=True)
    assert newest["state"]["step"] == 8
    assert newest["state"]["best_score"] is None, "it was that of other images"
    (tmp_path / "moved/images/room_0.png").rename(tmp_path / "moved/images/room_9.png")
    (tmp_path / "moved/depth/room_0.png").rename(tmp_path / "moved/depth/room_9.png")
    ended = start(tiny_world.settings("teacher", tmp_path / "run", *more, "steps=10"))
    assert ended.code == 1
    assert "what is learned: data.labeled.mine: other file names" in ended.err


def test_checkpoint_of_another_device_and_precision_loads() -> None:
    model = depth_anything("micro")
    optimizer = build_optimizer(model, [], OptimizerSettings(1e-3))
    state = TrainingState(model, Stage(), optimizer, torch.amp.GradScaler("cpu", enabled=True))
    payload = state.payload()
    for group in payload["optimizer"]["param_groups"]:
        group["fused"] = False  # as on a device without fused kernels
    payload["scaler"] = {}  # as of a run in bf16
    scale = state.scaler.get_scale()
    state.restore(payload)
    assert all(group["fused"] for group in optimizer.param_groups)
    assert state.scaler.get_scale() == scale > 0
