"""Plug-ins in every process of a run: loader processes that are spawned, and the ranks of torchrun."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

# Adds a loss, a stage and a target, which loader processes make, and notes each process that imports it.
PLUGIN = """
import multiprocessing, os, pathlib
import torch
from depthany.data.targets import TARGETS, Target, disparity01
from depthany.losses.table import LOSSES
from depthany.training.stages.table import STAGES
from depthany.training.stages.teacher import TeacherStage

is_main = multiprocessing.current_process().name == "MainProcess"
kind = f"rank {os.environ.get('RANK', 0)}" if is_main else "loader"
pathlib.Path(os.environ["IMPORTS"], f"{os.getpid()} {kind}").touch()

def half_disparity(labels, crop):
    target, mask = disparity01(labels, crop)
    return target / 2, mask

def mae(prediction, target, mask, *, mean_over_ranks):
    return torch.where(mask, (prediction - target).abs(), 0).sum() / mean_over_ranks(mask.sum()).clamp(min=1)

class Halved(TeacherStage):
    target = "half"

TARGETS["half"] = Target(half_disparity, *TARGETS["disparity01"][1:])
LOSSES["mae"] = mae
STAGES["halved"] = Halved
"""
STAGE = """# @package _global_
defaults:
  - override /perturb: none
stage:
  name: halved
  terms: {mae: 1.0}
"""
SPAWN = "import multiprocessing; multiprocessing.set_start_method('spawn', force=True)"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's project with a plug-in and the YAML of its stage."""
    folder = tmp_path / "project"
    (folder / "configs/stage").mkdir(parents=True)
    (folder / "halved_depth.py").write_text(PLUGIN)
    (folder / "configs/stage/halved.yaml").write_text(STAGE)
    (folder / "imports").mkdir()
    return folder


def command(world, project: Path, run_dir: Path, *more: str) -> list[str]:
    words = world.settings("halved", run_dir, "steps=2", "save_every=1", "eval_every=0", *more)
    own = [f"--config-dir={project / 'configs'}", "plugins=[halved_depth]"]
    return [*own, *words]


def before(project: Path, more: str = "") -> str:
    """Code of a child process that finds the plug-in."""
    return (
        f"import os, sys\nsys.path.insert(0, {str(project)!r})\n"
        f"os.environ['IMPORTS'] = {str(project / 'imports')!r}\n{more}"
    )


def imports(project: Path) -> Counter[str]:
    return Counter(path.name.split(" ", 1)[1] for path in (project / "imports").iterdir())


@pytest.mark.slow
def test_spawned_loader_imports_the_plugin(
    start_elsewhere: Callable, tiny_world, project: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    words = command(tiny_world, project, run_dir, "workers=1")
    ended = start_elsewhere(words, before(project, SPAWN))
    assert ended.code == 0, ended.err
    assert imports(project) == {"rank 0": 1, "loader": 1}
    saved = torch.load(run_dir / "checkpoints/step_00000002.pt", weights_only=True)
    assert saved["plugins"] == ["halved_depth"]
    assert json.loads((run_dir / "config.json").read_text())["plugins"] == ["halved_depth"]


@pytest.mark.slow
def test_every_rank_imports_the_plugin(
    torchrun: Callable, tiny_world, project: Path, tmp_path: Path, micro: str
) -> None:
    ended = torchrun(command(tiny_world, project, tmp_path / "run"), before=before(project))
    assert ended.code == 0, ended.err
    assert imports(project) == {"rank 0": 1, "rank 1": 1}
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(line["loss/total"] < 1 for line in lines if "loss/total" in line)


def test_resume_without_the_plugin_names_it(
    start_elsewhere: Callable, tiny_world, project: Path, tmp_path: Path
) -> None:
    words = command(tiny_world, project, tmp_path / "run")
    words.remove("plugins=[halved_depth]")
    ended = start_elsewhere(words, before(project))
    assert ended.code == 2
    assert (
        ended.err
        == "error: unknown stage.name 'halved'; choose from teacher, student, metric, segmentation\n"
    )
