"""Averaged weights: numbers by hand, what they are used for, and that a killed run goes on to the same."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from torch import nn

from depthany.data.labeled import FolderDepth
from depthany.models.files.loading import load_model
from depthany.training.checkpoints.state import read_checkpoint, write_checkpoint
from depthany.training.ema import EmaSettings, WeightAverage, decay_after
from depthany.training.validation import evaluate

pytestmark = pytest.mark.usefixtures("micro")

EMA = ("ema.decay=0.75", "ema.warmup=false")


class Normed(nn.Module):
    """A weight that learns, one that is frozen, and BatchNorm's statistics and counter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.fixed = nn.Parameter(torch.ones(2), requires_grad=False)
        self.norm = nn.BatchNorm1d(1, affine=False)


def test_average_is_the_sum_by_hand() -> None:
    model = Normed()
    average = WeightAverage(model, EmaSettings(0.75, warmup=False))  # type: ignore[arg-type]
    for step, value in enumerate((5.0, 9.0), start=1):
        model.weight.data.fill_(value)
        model.norm.running_mean.fill_(value)  # from 0
        model.norm.num_batches_tracked.fill_(step)
        average.update(model, step)  # type: ignore[arg-type]
    # 1 -> 3/4 + 5/4 = 2 -> 6/4 + 9/4 = 3.75, and 2 -> 2.75 -> 4.3125
    assert average.tensors["weight"].tolist() == [3.75, 4.3125]
    assert average.tensors["norm.running_mean"].tolist() == [3.1875]  # 0 -> 1.25 -> 3.1875
    assert average.tensors["norm.num_batches_tracked"] == 2
    assert "fixed" not in average.tensors
    result = average.averaged(model)  # type: ignore[arg-type]
    assert result.weight.tolist() == [3.75, 4.3125]
    assert result.fixed.tolist() == [1.0, 1.0]
    assert model.weight.tolist() == [9.0, 9.0]


def test_warmup_forgets_the_first_weights() -> None:
    settings = EmaSettings(0.999)
    assert [decay_after(step, settings) for step in (1, 8)] == [2 / 11, 0.5]
    assert decay_after(8991, settings) == pytest.approx(0.999, abs=1e-12)
    assert decay_after(100_000, settings) == 0.999
    assert decay_after(1, EmaSettings(0.999, warmup=False)) == 0.999


@pytest.fixture(scope="module")
def averaged(start, tiny_world, tmp_path_factory) -> Path:
    """A finished run of averaged weights; its settings are otherwise those of `teacher_run`."""
    run_dir = tmp_path_factory.mktemp("ema") / "run"
    ended = start(tiny_world.settings("teacher", run_dir, *EMA))
    assert ended.code == 0, ended.err
    assert "validation: weights averaged over the steps (ema.decay=0.75), fitted" in " ".join(
        ended.out.split()
    )
    return run_dir


def test_averaging_does_not_change_training(averaged: Path, teacher_run: Path) -> None:
    mine, theirs = (read_checkpoint(run / "checkpoints/step_00000006.pt") for run in (averaged, teacher_run))
    assert all(torch.equal(mine["model"][name], tensor) for name, tensor in theirs["model"].items())
    assert "ema" not in theirs


def test_average_is_scored_and_saved(averaged: Path, tiny_world) -> None:
    payload = read_checkpoint(averaged / "checkpoints/step_00000006.pt")
    model, of_checkpoint = load_model(averaged), load_model(averaged / "checkpoints/step_00000006.pt")
    for name, tensor in payload["ema"].items():
        assert torch.equal(model.state_dict()[name], tensor)
        assert torch.equal(of_checkpoint.state_dict()[name], tensor)
    assert not torch.equal(payload["model"]["head.conv2.weight"], payload["ema"]["head.conv2.weight"])
    scores = evaluate(model.to(memory_format=torch.channels_last), {"mine": val_set(tiny_world)}, 28)
    results = json.loads((averaged / "results.json").read_text())
    assert results["scores"]["teacher"] == scores
    assert results["weights"] == "averaged over the steps (ema.decay=0.75)"
    assert json.loads((averaged / "config.json").read_text())["training"]["weights"] == results["weights"]


def test_best_checkpoint_is_of_the_average(averaged: Path, tiny_world) -> None:
    best = read_checkpoint(averaged / "checkpoints/best.pt")
    model = load_model(averaged / "checkpoints/best.pt").to(memory_format=torch.channels_last)
    scores = evaluate(model, {"mine": val_set(tiny_world)}, 28)
    assert scores["mine"]["abs_rel"] == best["state"]["best_score"]
    assert "ema" not in best


def val_set(world) -> FolderDepth:
    return FolderDepth(str(world.root / "val"), depth_scale=1000)


def interrupted(run: Path, copy: Path) -> Path:
    """A copy of a finished run as if it had been killed after the checkpoint of step 4."""
    shutil.copytree(run, copy)
    (copy / "model.safetensors").unlink()
    (copy / "checkpoints/step_00000006.pt").unlink()
    settings = yaml.safe_load((copy / "settings.yaml").read_text()) | {"run_dir": str(copy)}
    (copy / "settings.yaml").write_text(yaml.safe_dump(settings))
    return copy


def test_killed_run_resumes_to_same_average(
    start, start_elsewhere, signal_at, averaged: Path, tiny_world, tmp_path: Path
) -> None:
    settings = tiny_world.settings("teacher", tmp_path / "run", *EMA)
    assert start_elsewhere(settings, signal_at(signal.SIGKILL, step=6)).code == -signal.SIGKILL
    ended = start(settings)
    assert "continuing at step 4 of 6" in ended.out, ended.err
    for name in ("model.safetensors", "results.json"):
        assert (tmp_path / "run" / name).read_bytes() == (averaged / name).read_bytes()


def test_average_cannot_begin_in_the_middle(start, teacher_run: Path, tiny_world, tmp_path: Path) -> None:
    run_dir = interrupted(teacher_run, tmp_path / "run")
    settings = tiny_world.settings("teacher", run_dir, *EMA)
    ended = start(settings)
    assert ended.code == 2
    assert "ema.decay: null -> 0.75" in ended.err
    began = OmegaConf.load(run_dir / "settings.yaml")
    began.ema = {"decay": 0.75, "warmup": False}
    OmegaConf.save(began, run_dir / "settings.yaml")
    ended = start(settings)
    assert ended.code == 2
    assert "the checkpoint has no averaged weights" in ended.err
    assert "ema.decay=null" in ended.err


def test_run_of_older_version_resumes(start, teacher_run: Path, tiny_world, tmp_path: Path) -> None:
    run_dir = interrupted(teacher_run, tmp_path / "run")
    settings = yaml.safe_load((run_dir / "settings.yaml").read_text())
    for name in ("ema", "early_stopping"):
        del settings[name]
    (run_dir / "settings.yaml").write_text(yaml.safe_dump(settings))
    checkpoint = run_dir / "checkpoints/step_00000004.pt"
    payload = read_checkpoint(checkpoint)
    payload["state"] = {key: payload["state"][key] for key in ("step", "best_score")}
    write_checkpoint(checkpoint, payload)
    ended = start(tiny_world.settings("teacher", run_dir))
    assert "continuing at step 4 of 6" in ended.out, ended.err
    weights = [(run / "model.safetensors").read_bytes() for run in (run_dir, teacher_run)]
    assert weights[0] == weights[1]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_average_is_exact_on_two_ranks(
    torchrun, signal_at, averaged: Path, tiny_world, tmp_path: Path, parallel: str
) -> None:
    words = [*EMA, f"parallel={parallel}", "loss.normalisation=least_squares"]
    whole, killed = (tiny_world.settings("teacher", tmp_path / name, *words) for name in ("whole", "killed"))
    ended = torchrun(whole)
    assert ended.code == 0, ended.err
    rank = "import os\nif os.environ['RANK'] == '1':\n"
    kill = signal_at(signal.SIGTERM, step=4).strip().replace("\n", "\n    ")
    torchrun(killed, before=f"{rank}    {kill}")
    again = torchrun(killed)
    assert "continuing at step 4 of 6" in again.out, again.err
    for name in ("model.safetensors", "results.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    best = load_model(tmp_path / "whole/checkpoints/best.pt").state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in best.values())
