"""Loggers: what each is given, that a resumed run continues its own, and which packages they need."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from depthany.training.log_files import LogFiles
from depthany.training.loggers.logger import LogPlace
from depthany.training.loggers.table import LOGGERS
from depthany.training.loggers.wandb import WandbLogger

SHEET = np.zeros((8, 8, 3), np.uint8)


def test_jsonl_alone_writes_no_events(start, tiny_world, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    ended = start(tiny_world.settings("teacher", run_dir, "steps=1", "loggers=[jsonl]"))
    assert ended.code == 0, ended.err
    assert "curves and pictures" not in ended.out
    assert not list(run_dir.glob("events*"))
    assert (run_dir / "metrics.jsonl").exists()


def test_unknown_logger_lists_the_choices(start, tiny_world, tmp_path: Path) -> None:
    ended = start(tiny_world.settings("teacher", tmp_path / "run", "loggers=[jsonl,tensorbord]"))
    assert ended.code == 2
    assert "unknown loggers 'tensorbord'; choose from jsonl, tensorboard, wandb, mlflow" in ended.err


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_missing_package_names_the_extra(
    start, tiny_world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    ended = start(tiny_world.settings("teacher", tmp_path / "run", f"loggers=[{name}]"))
    assert ended.code == 2
    assert f"loggers=[{name}] needs the package {name}: pip install 'depthany[{name}]'" in ended.err
    assert not (tmp_path / "run").exists()


class FakeWandb(SimpleNamespace):
    """The part of the package `wandb` that the logger calls."""

    Error, Image = RuntimeError, staticmethod(lambda sheet: sheet.shape)

    def __init__(self) -> None:
        super().__init__(begun=[], rows=[], axes=[], finished=0)

    def Settings(self, **settings: Any) -> dict[str, Any]:
        return settings

    def init(self, **arguments: Any) -> "FakeWandb":
        self.begun.append(arguments)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes.append((name, step_metric))

    def log(self, row: dict[str, Any]) -> None:
        if self.finished > 1:
            raise self.Error("no room")
        self.rows.append(row)

    def finish(self) -> None:
        self.finished += 1


def test_wandb_run_is_offline_and_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for start_step in (0, 2):
        log = LogFiles(tmp_path, start_step, "seed: 3", False, print, ["wandb"])
        log.scalars(start_step + 1, {"loss/total": 0.5})
        log.picture("labeled", SHEET, start_step + 1)
        assert log.how_to_look() == f"wandb sync {tmp_path}/wandb/offline-run-*"
        log.close()
    first, second = fake.begun
    assert (first["mode"], first["resume"], first["config"]) == ("offline", "allow", {"seed": 3})
    assert first["id"] == second["id"] == (tmp_path / "wandb_run.txt").read_text().strip()
    assert fake.axes == [("*", "step")] * 2
    assert fake.rows == [
        {"step": 1, "loss/total": 0.5},
        {"step": 1, "labeled": (8, 8, 3)},
        {"step": 3, "loss/total": 0.5},
        {"step": 3, "labeled": (8, 8, 3)},
    ]
    failing = WandbLogger(LogPlace(tmp_path, 0, "seed: 3"))
    with pytest.raises(OSError, match="Weights & Biases: no room"):
        failing.scalars(1, {"loss/total": 0.5})


def test_overwrite_deletes_what_loggers_wrote(start, teacher_run: Path, tiny_world, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(teacher_run, run_dir)
    (run_dir / "wandb").mkdir()
    for name in ("wandb/run.txt", "wandb_run.txt", "mlflow.db", "mlflow_run.txt"):
        (run_dir / name).write_text("old")
    ended = start(tiny_world.settings("teacher", run_dir, "steps=1", "overwrite=true"))
    assert ended.code == 0, ended.err
    assert not [*run_dir.glob("wandb*"), *run_dir.glob("mlflow*")]


@pytest.fixture
def killed_and_resumed(start, tiny_world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs to step 6 with a logger, then again from step 4, as if killed before it wrote its model."""

    def run(name: str) -> Path:
        monkeypatch.delenv("WANDB_MODE", raising=False)
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        run_dir = tmp_path / "run"
        settings = tiny_world.settings("teacher", run_dir, f"loggers=[jsonl,{name}]", "image_every=3")
        assert start(settings).code == 0
        (run_dir / "model.safetensors").unlink()
        (run_dir / "checkpoints/step_00000006.pt").unlink()
        ended = start(settings)
        assert ended.code == 0, ended.err
        assert "continuing at step 4 of 6" in ended.out
        return run_dir

    return run


def logged(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_wandb_writes_offline(killed_and_resumed) -> None:
    pytest.importorskip("wandb")
    run_dir = killed_and_resumed("wandb")
    run_id = (run_dir / "wandb_run.txt").read_text().strip()
    written = sorted(run_dir.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert len(written) == 2
    assert all(b"loss/total" in path.read_bytes() for path in written)
    assert list(run_dir.glob("wandb/offline-run-*/files/media/images/crops/*.png"))


@pytest.mark.slow
def test_mlflow_holds_the_numbers_of_jsonl(killed_and_resumed) -> None:
    for name in ("mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(name)
    from mlflow import MlflowClient

    run_dir = killed_and_resumed("mlflow")
    client = MlflowClient(tracking_uri=f"sqlite:///{run_dir.resolve() / 'mlflow.db'}")
    run = client.get_run((run_dir / "mlflow_run.txt").read_text().strip())
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer.lr"] == "0.001"
    history = client.get_metric_history(run.info.run_id, "loss/total")
    points = {(each.step, each.value) for each in history}
    assert points == {(line["step"], line["loss/total"]) for line in logged(run_dir) if "loss/total" in line}
    assert len(history) == 8, "steps 5 and 6 twice, with the same values"
    assert list(run_dir.glob(f"mlartifacts/{run.info.run_id}/artifacts/images/*.png"))


def test_table_names_what_a_run_writes() -> None:
    for name, logger in LOGGERS.items():
        assert logger.title and logger.written, name
