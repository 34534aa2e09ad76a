"""End to end through the entry point: what a run writes, when it is refused, and that it learns."""

import hashlib
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from depthany.data.batch import Batch
from depthany.data.folder_depth import FolderDepth
from depthany.models.files.loading import load_model
from depthany.models.model import depth_anything
from depthany.training import run_dir as runs
from depthany.training.checkpoints.state import (
    Progress,
    TrainingState,
    read_checkpoint,
    write_checkpoint,
)
from depthany.training.checkpoints.writer import CheckpointWriter
from depthany.training.loop import LoopSettings, Run, draw_generator, train, update
from depthany.training.optim import OptimizerSettings, ScheduleSettings, build_optimizer
from depthany.training.stages.base import Stage, StageOutput
from depthany.training.tracking import NullTracker, Tracker
from depthany.training.validation import evaluate

pytestmark = pytest.mark.usefixtures("micro")


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file below a folder, by its path there."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def metrics(run_dir: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


@pytest.mark.parametrize("run", ["teacher_run", "student_run"])
def test_run_writes_model_results_curves_and_checkpoints(request: pytest.FixtureRequest, run: str) -> None:
    names = set(contents(request.getfixturevalue(run)))
    events = {name for name in names if name.startswith("events.out.tfevents.")}
    assert len(events) == 1
    assert names - events == {
        "model.safetensors",
        "config.json",
        "results.json",
        "metrics.jsonl",
        "settings.yaml",
        "examples.png",
        ".lock",
        "checkpoints/step_00000004.pt",
        "checkpoints/step_00000006.pt",
        "checkpoints/best.pt",
        "checkpoints/progress.json",
    }


def test_saved_model_scores_as_the_run_reported(tiny_world, student_run: Path) -> None:
    model = load_model(student_run).to(memory_format=torch.channels_last)  # as in training; else 1e-9 apart
    val = {"mine": FolderDepth(str(tiny_world.root / "val"), depth_scale=1000)}
    scores = evaluate(model, val, 28)
    results = json.loads((student_run / "results.json").read_text())
    assert results["step"] == 6
    assert results["scores"]["student"] == scores
    assert metrics(student_run, "val/mine/abs_rel")[-1] == scores["mine"]["abs_rel"]


def test_best_checkpoint_has_smallest_abs_rel(teacher_run: Path) -> None:
    found = metrics(teacher_run, "val/mine/abs_rel")  # after steps 3 and 6
    best = torch.load(teacher_run / "checkpoints/best.pt", weights_only=True)["state"]
    step = 3 * (1 + found.index(min(found)))
    assert (best["step"], best["best_score"], best["validated_step"]) == (step, min(found), step)


def test_student_shows_scores_of_its_teacher(student_run: Path, teacher_run: Path) -> None:
    student, teacher = (
        json.loads((run / "results.json").read_text())["scores"] for run in (student_run, teacher_run)
    )
    assert student["teacher"] == teacher["teacher"]
    assert student["student"] != student["teacher"]
    printed = (student_run.parent / "out.txt").read_text()
    for name in ("student", "teacher"):
        assert re.search(rf"{name} .* {student[name]['mine']['abs_rel']:.4f} ", printed)


def test_student_starts_from_its_own_weights(start, tiny_world, teacher_run: Path, tmp_path: Path) -> None:
    for stage, run in (("teacher", "a"), ("student", "b")):
        more = ("steps=1", "optimizer.lr=0", f"stage.teacher={teacher_run}")[: 3 if stage == "student" else 2]
        assert start(tiny_world.settings(stage, tmp_path / run, *more)).code == 0
    assert not torch.equal(
        load_model(tmp_path / "a").encoder.pos_embed, load_model(tmp_path / "b").encoder.pos_embed
    )


@pytest.mark.parametrize("run", ["teacher_run", "student_run"])
def test_every_parameter_moves(request: pytest.FixtureRequest, run: str) -> None:
    folder = request.getfixturevalue(run) / "checkpoints"
    earlier, later = (torch.load(folder / f"step_0000000{k}.pt", weights_only=True)["model"] for k in (4, 6))
    assert [name for name, tensor in later.items() if torch.equal(tensor, earlier[name])] == []


class NotesSeeds(Stage):
    """A stage that learns nothing and notes what the perturbations would be drawn from."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds: list[int] = []

    def forward(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> StageOutput:
        self.seeds.append(generator.initial_seed())
        return StageOutput(0 * model.head.conv3.bias.sum(), {"output/zeros": torch.tensor(0.0)}, {})


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_every_micro_batch_has_its_own_perturbations(micro: str, tmp_path: Path, accumulate: int) -> None:
    settings = LoopSettings(6, accumulate, 0, ScheduleSettings(), None, 0, 0, eval_every=0, save_every=0)
    model, stage = depth_anything(micro), NotesSeeds()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    state = TrainingState(model, stage, build_optimizer(model, [], OptimizerSettings(1e-3)), scaler)
    batch = Batch(*(torch.zeros(1) for _ in range(4)))
    tracker = Tracker(tmp_path, 0, settings.total_steps, "")
    with CheckpointWriter(tmp_path / "checkpoints", 1, "stop", tracker.say) as writer:
        batches = iter([batch] * 6)
        train(Run(state, batches, lambda _: {}, settings, tracker, writer, torch.device("cpu")))
    tracker.close()
    assert state.progress.step == -(-6 // accumulate)
    assert stage.seeds == [draw_generator(0, k).initial_seed() for k in range(6)]
    assert len(set(stage.seeds)) == 6


class HigherIsBetter(NotesSeeds):
    """A stage whose best checkpoint is that of the largest delta1."""

    primary = "delta1"


def test_best_checkpoint_follows_the_primary_metric(micro: str, tmp_path: Path) -> None:
    settings = LoopSettings(3, 1, 0, ScheduleSettings(), None, 0, 0, eval_every=1, save_every=0)
    model, stage = depth_anything(micro), HigherIsBetter()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    state = TrainingState(model, stage, build_optimizer(model, [], OptimizerSettings(1e-3)), scaler)
    batch, delta1 = Batch(*(torch.zeros(1) for _ in range(4))), iter([0.5, 0.75, 0.25])
    with CheckpointWriter(tmp_path, 1, "stop", print) as writer:
        scores = lambda _: {"a": {"delta1": next(delta1), "abs_rel": 1.0, "images": 2}}  # noqa: E731
        tracker = NullTracker()
        train(Run(state, iter([batch] * 3), scores, settings, tracker, writer, torch.device("cpu")))
    best = read_checkpoint(tmp_path / "best.pt")["state"]
    assert (best["step"], best["best_score"]) == (2, 0.75)


@pytest.mark.parametrize("saved, best", [(0.25, 0.25), (math.inf, None)])
def test_best_abs_rel_of_old_checkpoints_is_read(saved: float, best: float | None) -> None:
    progress = Progress()
    progress.restore({"step": 4, "best_abs_rel": saved})
    assert progress == Progress(4, best, best, validated_step=4, saved_score=best), (
        "saved after the validation"
    )


def test_teacher_is_not_in_student_checkpoint(student_run: Path) -> None:
    payload = torch.load(student_run / "checkpoints/step_00000006.pt", weights_only=True)
    assert payload["stage"] == {}
    model = load_model(student_run)
    assert sum(len(group["params"]) for group in payload["optimizer"]["param_groups"]) == len(
        list(model.parameters())
    )
    assert payload["model"].keys() == model.state_dict().keys()


def test_config_json_holds_the_settings(teacher_run: Path) -> None:
    config = json.loads((teacher_run / "config.json").read_text())
    assert config["model"]["encoder"]["size"] == "micro"
    assert config["training"]["step"] == 6
    assert config["training"]["settings"] == yaml.safe_load((teacher_run / "settings.yaml").read_text())


def test_finished_run_changes_no_file(start, tiny_world, teacher_run: Path) -> None:
    before = contents(teacher_run)
    ended = start(tiny_world.settings("teacher", teacher_run, "log_every=2"))
    assert ended.code == 0
    assert "finished run with these settings (image_every: 3 -> 0; log_every: 1 -> 2: no effect" in ended.out
    assert "overwrite=true" in ended.out
    assert contents(teacher_run) == before


def test_finished_run_of_other_settings_fails(start, tiny_world, teacher_run: Path) -> None:
    before = contents(teacher_run)
    ended = start(tiny_world.settings("teacher", teacher_run, "seed=5", "optimizer.lr=0.5"))
    assert ended.code == 1, "a sweep over settings must not succeed by doing nothing"
    assert ended.err.count("\n") == 1
    assert "finished run with other settings" in ended.err
    assert "what is learned: optimizer.lr: 0.001 -> 0.5; seed: 0 -> 5;" in ended.err
    assert "overwrite=true" in ended.err
    assert contents(teacher_run) == before


def test_overwrite_keeps_files_of_others(start, tiny_world, teacher_run: Path, tmp_path: Path) -> None:
    shutil.copytree(teacher_run, tmp_path / "run")
    (tmp_path / "run/notes.txt").write_text("mine")
    (tmp_path / "run/checkpoints/mine.txt").write_text("mine")
    ended = start(tiny_world.settings("teacher", tmp_path / "run", "seed=5", "overwrite=true"))
    assert ended.code == 0, ended.err
    assert (tmp_path / "run/notes.txt").read_text() == "mine"
    assert (tmp_path / "run/checkpoints/mine.txt").read_text() == "mine"
    weights = [load_model(run).head.conv3.weight for run in (teacher_run, tmp_path / "run")]
    assert not torch.equal(*weights)
    assert len(metrics(tmp_path / "run", "loss/total")) == 6
    assert len(list((tmp_path / "run").glob("events.*"))) == 1


def test_overwrite_deletes_nothing_if_run_cannot_begin(
    start, tiny_world, teacher_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(teacher_run, tmp_path / "run")
    before = contents(tmp_path / "run")
    mistake = "data.labeled.mine.root=/no/such"
    assert start(tiny_world.settings("teacher", tmp_path / "run", "overwrite=true", mistake)).code == 2
    assert contents(tmp_path / "run") == before


def test_two_runs_cannot_share_a_folder(
    start, tiny_world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "LOCK_TIMEOUT_S", 0.01)
    run_dir = tmp_path / "run"
    with runs.locked(run_dir):
        ended = start(tiny_world.settings("teacher", run_dir))
    assert ended.code == 2
    assert "another process trains into" in ended.err
    assert {path.name for path in run_dir.iterdir()} <= {".lock"}
    assert start(tiny_world.settings("teacher", run_dir)).code == 0


def test_killed_loader_ends_run_in_one_line(start_elsewhere, tiny_world, tmp_path: Path) -> None:
    killed = """
import os, signal
from depthany.data.dataset import TrainingSet
TrainingSet.__getitem__ = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = start_elsewhere(tiny_world.settings("teacher", tmp_path / "run", "workers=1"), killed)
    assert ended.code == 2, ended.err
    assert "a loader process was killed" in ended.err
    assert "Traceback" not in ended.err


def test_resume_with_other_settings_is_refused(start, tiny_world, teacher_run: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(teacher_run, run_dir)
    (run_dir / "model.safetensors").unlink()
    settings = yaml.safe_load((run_dir / "settings.yaml").read_text())
    (run_dir / "settings.yaml").write_text(yaml.safe_dump(settings | {"run_dir": str(run_dir)}))
    before = contents(run_dir)
    ended = start(
        tiny_world.settings("teacher", run_dir, "seed=5", "optimizer.weight_decay=0.5", "log_every=2")
    )
    assert ended.code == 2
    refused, may_change = ended.err.split("these may change:")
    assert "optimizer.weight_decay: 0.01 -> 0.5; seed: 0 -> 5" in refused
    assert "log_every: 1 -> 2" in may_change
    assert contents(run_dir) == before


def test_resume_with_other_image_counts_is_refused(
    start, tiny_world, teacher_run: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(teacher_run, run_dir)
    (run_dir / "model.safetensors").unlink()
    settings = yaml.safe_load((run_dir / "settings.yaml").read_text()) | {"run_dir": str(run_dir)}
    assert settings["images_found"] == {"labeled": 4, "unlabeled": 0}
    settings["images_found"]["labeled"] = 5
    (run_dir / "settings.yaml").write_text(yaml.safe_dump(settings))
    ended = start(tiny_world.settings("teacher", run_dir))
    assert ended.code == 2
    assert "what is learned: images_found.labeled: 5 -> 4" in ended.err
    assert "its own settings and files to continue" in ended.err


def test_seed_decides_the_run(
    start, tiny_world, student_run: Path, teacher_run: Path, tmp_path: Path
) -> None:
    for seed in (0, 1):
        settings = tiny_world.settings(
            "student", tmp_path / f"{seed}", f"stage.teacher={teacher_run}", f"seed={seed}"
        )
        assert start(settings).code == 0
    assert metrics(tmp_path / "0", "loss/total") == metrics(student_run, "loss/total")
    weights = [
        (run / "model.safetensors").read_bytes() for run in (student_run, tmp_path / "0", tmp_path / "1")
    ]
    assert weights[0] == weights[1] != weights[2]


def test_loader_processes_do_not_change_the_run(start, tiny_world, teacher_run: Path, tmp_path: Path) -> None:
    ended = start(tiny_world.settings("teacher", tmp_path / "run", "workers=2"))
    assert ended.code == 0, ended.err
    assert (tmp_path / "run/model.safetensors").read_bytes() == (
        teacher_run / "model.safetensors"
    ).read_bytes()


def test_accumulation_equals_large_batch(start, tiny_world, tmp_path: Path) -> None:
    for k in (1, 3):  # per image, since a mean over pixels weighs the micro-batches by their valid pixels
        more = (f"accumulate={k}", "loss.reduction=image", "steps=3", "schedule.warmup_steps=0")
        assert start(tiny_world.settings("teacher", tmp_path / f"{k}", *more)).code == 0
    for name in (
        "loss/total",
        "optimizer/gradient_norm",
    ):  # of the loss alone Adam would not notice another scale
        at_once, in_parts = (metrics(tmp_path / f"{k}", name) for k in (1, 3))
        assert in_parts == pytest.approx(at_once, rel=2e-3)


def test_teacher_learns_four_images_by_heart(start, tiny_world, tmp_path: Path) -> None:
    more = (
        "steps=60",
        "batch_size=4",
        "optimizer.lr=3e-3",
        "eval_every=0",
        "save_every=0",
        "data.val.mine.root=null",
    )
    ended = start(tiny_world.settings("teacher", tmp_path / "run", *more))
    assert ended.code == 0, ended.err
    losses = metrics(tmp_path / "run", "loss/total")
    assert sum(losses[-10:]) < 0.6 * sum(losses[:3]) * 10 / 3
    assert json.loads((tmp_path / "run/results.json").read_text())["scores"] == {"teacher": {}}


def test_passes_and_epochs_decide_the_steps(start, tiny_world, teacher_run: Path, tmp_path: Path) -> None:
    more = ("steps=null", "passes=1", "batch_size=6", f"stage.teacher={teacher_run}")
    assert start(tiny_world.settings("student", tmp_path / "run", *more)).code == 0
    assert len(metrics(tmp_path / "run", "loss/total")) == 2  # 6 images, 4 a step
    more = ("steps=null", "epochs=3", "batch_size=5")
    assert start(tiny_world.settings("teacher", tmp_path / "epochs", *more)).code == 0
    assert len(metrics(tmp_path / "epochs", "loss/total")) == 3  # 12 images, 5 a step


@pytest.mark.parametrize("labels", ["online", "once"])
def test_student_learns_from_pseudo_labels_alone(
    start, tiny_world, student_run: Path, tmp_path: Path, labels: str
) -> None:
    """From those of another student, with the losses of Depth Anything V2; killed and continued."""
    more = ("stage.ratio=[0,1]", "data.labeled.mine.root=/no/such", f"stage.teacher={student_run}")
    more += ("stage.terms={gradient: 2}", "stage.weights.labeled=0", f"pseudo_labels={labels}")
    more += ("eval_metrics=[edge_recall_5,boundary_f1]",)
    settings = tiny_world.settings("student", tmp_path / "run", *more)
    ended = start([*settings, "steps=1"])
    assert ended.code == 0, ended.err
    assert "micro on 6 unlabeled images, 1 step," in ended.out
    ended = start([*settings, "steps=3"])
    assert ended.code == 0, ended.err
    run = tmp_path / "run"
    assert len(metrics(run, "loss/unlabeled")) == 3
    assert not metrics(run, "loss/labeled")
    parts = (metrics(run, f"loss/unlabeled/{name}") for name in ("affine_invariant", "gradient"))
    for whole, affine, gradient in zip(metrics(run, "loss/unlabeled"), *parts):
        assert whole == pytest.approx(affine + 2 * gradient, rel=1e-5)
        assert gradient > 0
    scores = json.loads((run / "results.json").read_text())["scores"]
    assert all(0 <= scores[model]["mine"]["edge_recall_5"] <= 1 for model in ("student", "teacher"))


def test_feature_weight_0_needs_no_frozen_encoder(
    start, tiny_world, teacher_run: Path, tmp_path: Path
) -> None:
    more = ("stage.weights.feature=0", f"stage.teacher={teacher_run}", "steps=1")
    assert start(tiny_world.settings("student", tmp_path / "run", *more)).code == 0
    assert metrics(tmp_path / "run", "loss/unlabeled")
    assert not metrics(tmp_path / "run", "loss/feature")


def test_unreadable_unlabeled_images_are_refused_or_skipped(
    start, own_world, teacher_run: Path, tmp_path: Path
) -> None:
    bad = own_world.root / "unlabeled/street_3.jpg"
    bad.write_bytes(b"")
    more = ("steps=3", f"stage.teacher={teacher_run}")
    ended = start(own_world.settings("student", tmp_path / "a", *more))
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert str(bad) in ended.err
    ended = start(own_world.settings("student", tmp_path / "b", *more, "data.unreadable=skip"))
    assert ended.code == 0
    assert "1 unlabeled images were left out (1 empty)" in ended.out
    assert str(bad) in (tmp_path / "b/unreadable.txt").read_text()


def empty_the_image(labeled: Path) -> Path:
    bad = labeled / "images/room_1.png"
    bad.write_bytes(b"")
    return bad


def swap_in_a_depth_of_another_size(labeled: Path) -> Path:
    return shutil.copy(labeled / "depth/room_3.png", labeled / "depth/room_1.png")


def make_all_depth_invalid(labeled: Path) -> Path:
    bad = labeled / "depth/room_1.png"
    Image.new("I;16", (42, 56)).save(bad)
    return bad


@pytest.mark.parametrize(
    "damage",
    [empty_the_image, swap_in_a_depth_of_another_size, make_all_depth_invalid],
    ids=lambda f: f.__name__,
)
def test_bad_labeled_pair_is_named_in_one_line(start, own_world, tmp_path: Path, damage) -> None:
    bad = damage(own_world.root / "labeled")
    ended = start(own_world.settings("teacher", tmp_path / "run"))
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert str(bad) in ended.err
    assert "data.unreadable=skip" in ended.err


@pytest.mark.parametrize("damage", [empty_the_image, make_all_depth_invalid], ids=lambda f: f.__name__)
def test_bad_validation_file_is_named_before_training(start, own_world, tmp_path: Path, damage) -> None:
    for name in ("images", "depth"):
        for path in sorted((own_world.root / "val" / name).iterdir()):
            path.rename(path.with_name(path.name.replace("val", "room")))
    bad = damage(own_world.root / "val")
    ended = start(own_world.settings("teacher", tmp_path / "run"))
    assert ended.code == 2
    assert ended.err.startswith("error: data.val.mine: 1 of 3 images that were read cannot be used: ")
    assert str(bad) in ended.err
    assert ended.err.endswith("(data.unreadable=skip leaves such images out)\n")
    assert not (tmp_path / "run").exists()
    ended = start(own_world.settings("teacher", tmp_path / "run", "data.unreadable=skip"))
    assert ended.code == 0, ended.err
    assert (
        f"warning: data.val.mine: 1 of 3 images that were read cannot be used and will be left out: {bad}"
        in (ended.out)
    )
    scores = json.loads((tmp_path / "run/results.json").read_text())["scores"]["teacher"]["mine"]
    assert (scores["images"], scores["unreadable"]) == (2, 1)


def test_steps_without_images_are_taken(start, own_world, tmp_path: Path) -> None:
    count = len(list((own_world.root / "labeled/images").iterdir()))
    empty_the_image(own_world.root / "labeled")
    more = ("batch_size=1", "epochs=1", "steps=null", "log_every=1", "data.unreadable=skip")
    ended = start(own_world.settings("teacher", tmp_path / "run", *more))
    assert ended.code == 0
    assert "1 labeled images were left out (1 empty)" in ended.out
    speeds = metrics(tmp_path / "run", "speed/images_per_second")
    assert len(speeds) == count
    assert speeds.count(0) == 1
    losses = metrics(tmp_path / "run", "loss/total")
    assert len(losses) == count - 1
    assert all(map(math.isfinite, losses))


def test_nan_loss_stops_the_run_naming_the_part(
    start, tiny_world, teacher_run: Path, student_run: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    newest = run_dir / "checkpoints/step_00000004.pt"
    newest.parent.mkdir(parents=True)
    shutil.copy(student_run / "settings.yaml", run_dir)
    payload = torch.load(student_run / "checkpoints" / newest.name, weights_only=True)
    payload["model"]["head.conv3.bias"].fill_(torch.nan)
    write_checkpoint(newest, payload)
    before = contents(newest.parent)
    ended = start(tiny_world.settings("student", run_dir, f"stage.teacher={teacher_run}"))
    assert ended.code == 2
    assert ended.err.startswith("error: loss/labeled, loss/unlabeled is not finite at step 4 ")
    assert ended.err.count("\n") == 1
    assert contents(newest.parent) == before
    assert not (run_dir / "model.safetensors").exists()


def test_exploding_learning_rate_ends_in_one_line(start, tiny_world, tmp_path: Path) -> None:
    ended = start(tiny_world.settings("teacher", tmp_path / "run", "optimizer.lr=1e30"))
    assert ended.code == 2
    assert re.fullmatch(r"error: loss/labeled is not finite at step \d .*lower optimizer.lr.*\n", ended.err)


def test_nan_gradient_stops_before_the_step() -> None:
    model = depth_anything("micro")
    optimizer = build_optimizer(model, [], OptimizerSettings(1e-3))
    bias = model.head.conv3.bias
    before = bias.detach().clone()
    bias.grad = torch.full_like(before, torch.nan)
    state = TrainingState(model, Stage(), optimizer, torch.amp.GradScaler("cpu", enabled=False))
    with pytest.raises(ValueError, match="the gradient is not finite at step 0"):
        update(state, clip_norm=None)
    assert torch.equal(bias, before)
