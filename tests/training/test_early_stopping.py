"""Early stopping: when it ends a run, that it is exact under resume, and when it is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from depthany.data.batch import Batch
from depthany.models.model import depth_anything
from depthany.training.checkpoints import writer as writer_module
from depthany.training.checkpoints.resume import resume_latest
from depthany.training.checkpoints.state import Progress, TrainingState, write_checkpoint
from depthany.training.checkpoints.writer import CheckpointWriter
from depthany.training.early_stopping import EarlyStoppingSettings, has_run_out, note_score
from depthany.training.loop import LoopSettings, Run, train
from depthany.training.optim import OptimizerSettings, ScheduleSettings, build_optimizer
from depthany.training.stages.base import Stage, StageOutput
from depthany.training.tracking import NullTracker

pytestmark = pytest.mark.usefixtures("micro")


def waited(scores: list[float], metric: str, min_delta: float = 0.0) -> list[int]:
    """Validations without improvement after each of the scores."""
    progress, counts = Progress(), []
    for score in scores:
        note_score(progress, score, metric, min_delta)
        counts.append(progress.validations_without_gain)
    return counts


def test_improvement_begins_the_count_anew() -> None:
    assert waited([0.5, 0.6, 0.5, 0.4, 0.7, float("nan")], "abs_rel") == [0, 1, 2, 0, 1, 2]
    assert waited([0.5, 0.6, 0.6, 0.4], "delta1") == [0, 0, 1, 2]


def test_small_gains_add_up_to_min_delta() -> None:
    assert waited([0.5, 0.45, 0.41, 0.38], "abs_rel", 0.1) == [0, 1, 2, 0]
    assert waited([0.5, 0.55, 0.59, 0.62], "delta1", 0.1) == [0, 1, 2, 0]


def test_run_ends_when_patience_has_run_out() -> None:
    progress = Progress(validations_without_gain=2)
    assert has_run_out(progress, EarlyStoppingSettings(2))
    assert not has_run_out(progress, EarlyStoppingSettings(3))
    assert not has_run_out(progress, EarlyStoppingSettings(None))


class Constant(Stage):
    """A stage that learns nothing."""

    def forward(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> StageOutput:
        return StageOutput(0 * model.head.conv3.bias.sum(), {}, {})


class Lines(NullTracker):
    """Keeps the lines that a run prints."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def run_of(folder: Path, writer: CheckpointWriter, score: Callable, save_every: int, length: int) -> Run:
    """A run that validates after every step, resumed from the newest checkpoint in the folder."""
    settings = LoopSettings(
        length, 1, 0, ScheduleSettings(), None, 0, 0, 1, save_every, EarlyStoppingSettings(2)
    )
    model, scaler = depth_anything("micro"), torch.amp.GradScaler("cpu", enabled=False)
    state = TrainingState(model, Constant(), build_optimizer(model, [], OptimizerSettings(1e-3)), scaler)
    resume_latest(folder, state)
    batches = iter([Batch(*(torch.zeros(1) for _ in range(4)))] * length)
    return Run(state, batches, score, settings, Lines(), writer, torch.device("cpu"))


def test_resumed_run_ends_at_the_same_step(tmp_path: Path) -> None:
    abs_rel = [0.5, 0.3, 0.4, 0.35, 0.1]  # of steps 1 to 5: step 4 is the second one without improvement

    def training(folder: Path, length: int, first: int) -> Run:
        scores = iter(abs_rel[first:])
        with CheckpointWriter(folder, 1, "stop", print) as writer:
            score = lambda _: {"a": {"abs_rel": next(scores), "images": 2}}  # noqa: E731
            run = run_of(folder, writer, score, save_every=3, length=length)
            train(run)
        return run

    whole = training(tmp_path / "whole", 9, 0)
    training(tmp_path / "killed", 3, 0)  # its last checkpoint is that of step 3
    resumed = training(tmp_path / "killed", 9, 3)
    again = training(tmp_path / "killed", 9, 4)  # as if killed before the model was written
    for run in (whole, resumed, again):
        assert run.state.progress == Progress(4, 0.3, 0.3, 2, validated_step=4, saved_score=0.3)
        ended = (
            "early stopping ended the run at step 4 of 9: abs_rel has not improved in 2 validations, its "
            "best is 0.3000"
        )
        assert run.tracker.said[-1] == f"{ended}; a larger early_stopping.patience, or null, continues it"
        assert run.about() == {"step": 4, "ended_early": ended}
    assert json.loads((tmp_path / "whole/progress.json").read_text())["validations_without_gain"] == 2


def test_unwritten_best_model_leaves_room_for_later_ones(tmp_path: Path, monkeypatch) -> None:
    steps = list[int]()

    def write(path: Path, payload: dict) -> None:
        if path.name == "best.pt":
            steps.append(payload["state"]["step"])
            if steps[-1] == 2:
                raise ValueError(f"cannot write {path}: No space left on device")
        write_checkpoint(path, payload)

    monkeypatch.setattr(writer_module, "write_checkpoint", write)
    scores = iter([0.5, 0.3, 0.4, 0.45])
    with CheckpointWriter(tmp_path, 1, "continue", lambda _: None) as writer:
        score = lambda _: {"a": {"abs_rel": next(scores), "images": 2}}  # noqa: E731
        train(run_of(tmp_path, writer, score, save_every=1, length=4))
    assert steps == [1, 2, 3], "0.4 of step 3 is better than the 0.5 in the file"
    noted = json.loads((tmp_path / "progress.json").read_text())
    assert (noted["best_score"], noted["saved_score"]) == (0.3, 0.4)


def test_stopped_run_is_finished(start, tiny_world, tmp_path: Path) -> None:
    words = ("optimizer.lr=0", "eval_every=1", "early_stopping.patience=2")  # no score improves
    settings = tiny_world.settings("teacher", tmp_path / "run", *words)
    ended = start(settings)
    assert ended.code == 0, ended.err
    assert "early stopping ended the run at step 3 of 6" in ended.out
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["step"] == 3
    assert results["ended_early"].startswith("early stopping ended the run at step 3 of 6: abs_rel has not")
    again = start([*settings, "workers=0"])
    assert (again.code, "holds a finished run" in again.out) == (0, True)
    assert "which early stopping ended at step 3: raise early_stopping.patience, or pass null" in again.out
    lower = start([*settings, "early_stopping.patience=1"])
    assert "early_stopping.patience: 2 -> 1: no effect on what is trained" in lower.out


@pytest.mark.parametrize("patience, step", [("3", 4), ("null", 6)])
def test_larger_patience_continues_the_run(start, tiny_world, tmp_path: Path, patience, step) -> None:
    words = ("optimizer.lr=0", "eval_every=1", "early_stopping.patience=2")
    settings = tiny_world.settings("teacher", tmp_path / "run", *words)
    start(settings)
    longer = [*settings, f"early_stopping.patience={patience}"]
    ended = start(longer)
    assert ended.code == 0, ended.err
    assert "continuing at step 3 of 6" in ended.out
    assert json.loads((tmp_path / "run/results.json").read_text())["step"] == step
    assert "holds a finished run" in start(longer).out


def test_run_without_finite_score_ends(tmp_path: Path) -> None:
    for _ in range(2):  # the second time as if killed before the model was written
        with CheckpointWriter(tmp_path, 1, "stop", print) as writer:
            score = lambda _: {"a": {"abs_rel": float("nan"), "images": 2}}  # noqa: E731
            run = run_of(tmp_path, writer, score, save_every=1, length=5)
            train(run)
        assert run.about()["ended_early"] == (
            "early stopping ended the run at step 2 of 5: abs_rel has not improved in 2 validations, no "
            "validation had a finite score"
        )


@pytest.mark.parametrize(
    "words, message",
    [
        (("eval_every=0",), "eval_every=0 validates only at the end: set eval_every"),
        (("data.val.mine.root=null",), "needs a validation set: set one of data.val.mine.root=..."),
        (("early_stopping.patience=0",), "early_stopping.patience=0: expected 1 or more"),
    ],
)
def test_patience_without_validations_is_refused(start, tiny_world, tmp_path: Path, words, message) -> None:
    ended = start(tiny_world.settings("teacher", tmp_path / "run", "early_stopping.patience=3", *words))
    assert ended.code == 2
    assert message in ended.err


@pytest.mark.slow
def test_two_ranks_stop_at_the_same_step(torchrun, tiny_world, tmp_path: Path) -> None:
    words = ("optimizer.lr=0", "eval_every=1", "early_stopping.patience=2")
    ended = torchrun(tiny_world.settings("teacher", tmp_path / "run", *words))
    assert ended.code == 0, ended.err
    assert ended.out.count("early stopping ended the run at step 3 of 6") == 1
