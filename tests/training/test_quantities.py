"""What a model predicts must be what its stage learns: metres are never taught as disparity."""

from pathlib import Path

import pytest
import torch

from depthany.models.model import depth_anything, save_model
from depthany.training.stages.teacher import TeacherStage

pytestmark = pytest.mark.usefixtures("micro")


@pytest.fixture
def metric_model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = depth_anything("micro", max_depth_m=20.0, input_size=28)
    return save_model(model, tmp_path / "metric").parent


def test_metric_teacher_of_student_is_refused(start, tiny_world, metric_model: Path, tmp_path: Path) -> None:
    ended = start(tiny_world.settings("student", tmp_path / "run", f"stage.teacher={metric_model}"))
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert f"error: stage.teacher={metric_model} predicts depth in metres up to 20 m" in ended.err
    assert "expected disparity" in ended.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_metric_head_of_relative_stage_is_refused(
    start, tiny_world, teacher_run: Path, tmp_path: Path, stage: str
) -> None:
    more = ["model.head.name=metric_sigmoid", "+model.head.max_depth_m=20"]
    more += [f"stage.teacher={teacher_run}"] if stage == "student" else []
    ended = start(tiny_world.settings(stage, tmp_path / "run", *more))
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert "error: model.head.name=metric_sigmoid predicts depth in metres up to 20 m" in ended.err
    assert f"expected disparity: stage={stage} learns it, choose another head" in ended.err
    assert not (tmp_path / "run").exists()


def test_unknown_primary_metric_is_refused(
    start, tiny_world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TeacherStage, "primary", "abs_rell", raising=False)
    ended = start(tiny_world.settings("teacher", tmp_path / "run"))
    assert ended.code == 2
    assert (
        "stage=teacher has the primary metric 'abs_rell', which is unknown; choose from abs_rel" in ended.err
    )
    assert not (tmp_path / "run").exists()
