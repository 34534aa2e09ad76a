"""The command that a run names at its end carries over the data, and works as it is printed."""

import shlex
import sys
from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig

from depthany.commands import train_command
from depthany.config.given import given_words
from depthany.config.groups import config_dir
from depthany.train import main
from depthany.training.checks import roots_to_name
from depthany.training.next_command import Given, folder_of_images, student_dir
from depthany.training.settings import DataSettings
from depthany.training.stages.student import StudentStage
from depthany.training.stages.teacher import TeacherStage


def compose(*words: str) -> DictConfig:
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        return hydra.compose("train", list(words))


def next_of_teacher(run_dir: str, *words: str) -> list[str]:
    """The words after `depthany.train` of the next command, as the shell passes them."""
    given = Given(words, unlabeled=roots_to_name(compose(*words)))
    words = shlex.split(TeacherStage.next_command(Path(run_dir), given))
    assert words[:3] == ["python", "-m", "depthany.train"]
    return words[3:]


def test_default_teacher_needs_the_stage_alone() -> None:
    assert next_of_teacher("outputs/teacher", "stage=teacher", "steps=3") == ["stage=student"]


def test_student_keeps_experiment_and_gets_its_folder() -> None:
    words = next_of_teacher("outputs/v2_teacher", "stage=teacher", "experiment=sample_v2")
    assert words == [
        *("stage=student", "experiment=sample_v2"),
        *("stage.teacher=outputs/v2_teacher", "run_dir=outputs/v2_student"),
    ]
    cfg = compose(*words)
    assert cfg.stage.ratio == [0, 1] and cfg.model.encoder.taps == "v2"


def test_student_keeps_own_data_quoted() -> None:
    own = ["data=folder", "data.labeled.mine.root='my images'", "data.labeled.mine.depth_scale=1000"]
    words = next_of_teacher(
        "my runs/a", "stage=teacher", *own, "steps=7", "stage.terms={affine_invariant: 1}"
    )
    assert words == [
        *("stage=student", *own, "data.unlabeled.mine.root=FOLDER"),
        *("stage.teacher=my runs/a", "run_dir=my runs/a_student"),
    ]


def test_recipe_of_a_teacher_names_the_students() -> None:
    words = next_of_teacher("outputs/v2_vitg_teacher", "stage=teacher", "experiment=v2_vitg_teacher")
    assert words[:3] == ["stage=student", "experiment=v2_vitg_student", "data.unlabeled_root=FOLDER"]
    assert student_dir(Path("outputs/v2_vitg_teacher")) == Path("outputs/v2_vitg_student")


def test_prediction_takes_images_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "val/images").mkdir(parents=True)
    data = DataSettings(val={"mine": {"root": str(tmp_path / "val"), "images": "images"}})
    given = Given(images=folder_of_images(data))
    command = StudentStage.next_command(Path("outputs/a b"), given)
    assert command == f"python -m depthany.predict 'checkpoint=outputs/a b' images={tmp_path}/val/images"


def test_words_are_kept_as_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[str]()
    monkeypatch.setattr(train_command, "run", lambda cfg: seen.extend(given_words()) or 0)
    typed = ["stage=teacher", "run_dir=a b", "data=folder", "data.labeled.mine.root=x,y"]
    monkeypatch.setattr(sys, "argv", ["train", *typed])
    with pytest.raises(SystemExit):
        main()
    assert seen == typed
