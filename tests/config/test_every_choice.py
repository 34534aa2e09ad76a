"""Every boolean and every choice of the settings is run, or stands in a table with the reason why not.

Choices are read from the settings dataclasses, and booleans also from the composed YAML: a new one is run
without being named here. Run number i gives every setting its value number i, so that there are as many runs
as the longest list of choices has rows.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from depthany import check_data, evaluate, predict, pseudo_label, train
from depthany.commands.check_data_command import CheckDataSettings
from depthany.commands.evaluate_command import EvaluateSettings
from depthany.commands.predict_command import PredictSettings
from depthany.commands.pseudo_label_command import PseudoLabelSettings
from depthany.config.entry import config_dir, flat
from depthany.evaluation.protocol import Protocol
from depthany.losses.table import OF, SCALE_FREE
from depthany.models.heads.metric_bins import BIN_CENTERS
from depthany.models.model import depth_anything, save_model
from depthany.system.rules import rules
from depthany.training.settings import TrainSettings
from depthany.training.stages.table import STAGES

Values = Mapping[str, tuple[Any, ...]]  # by dotted key
BOTH = (True, False)
NOT_RUN = {  # key, or (key, value) -> why not
    ("precision", "fp16"): "needs CUDA: tests/gpu",
    ("cuda_graphs", "True"): "needs CUDA: tests/gpu",
    ("loggers", "['wandb']"): "an extra: tests/training/test_loggers.py",
    ("loggers", "['mlflow']"): "an extra: tests/training/test_loggers.py",
    ("save", "overlay"): "of classes: tests/inference/test_class_outputs.py",
    "override.crop": "for the sizes of NYU and KITTI: tests/metrics, tests/data/benchmarks",
    "override.input_crop": "for the size of KITTI: tests/data/benchmarks",
    "override.task": "ordinal needs DA-2K's points, classes masks: tests/data/benchmarks, tests/evaluation",
}
# `export` (three formats, two types) is run by tests/models/test_export.py; `app` and `index` have no choice
# of their own.


def choices(settings: type, prefix: str = "") -> dict[str, tuple[Any, ...]]:
    """Returns the values of every boolean and every choice of a settings dataclass, by dotted key."""
    found = dict[str, tuple[Any, ...]]()
    rule_of = rules(settings)
    for each in fields(settings):
        key, nested = f"{prefix}{each.name}", each.default_factory
        if is_dataclass(nested) and isinstance(nested, type):
            found |= choices(nested, f"{key}.")
        elif each.type is bool:
            found[key] = BOTH
        elif each.name in rule_of and rule_of[each.name].choices is not None:
            is_list = "list" in str(each.type)  # a setting of several choices takes one of them here
            found[key] = tuple([value] if is_list else value for value in rule_of[each.name].choices or ())
    return found


def booleans(cfg: DictConfig) -> dict[str, tuple[Any, ...]]:
    """Returns the booleans of a composed configuration, also of what no dataclass describes."""
    container = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(container, dict)
    return {key: BOTH for key, value in flat(container).items() if isinstance(value, bool)}


def composed(command: str, *words: str) -> DictConfig:
    """Returns the configuration of a command line."""
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        return hydra.compose(command, list(words))


def runs(base: DictConfig, values: Values, out: str, folder: Path, **fixed: Any) -> Iterator[DictConfig]:
    """Yields the configuration of each run.

    Args:
        out: key of the folder for results, which is a new one below `folder` for each run.
        fixed: keys, with __ for dots, whose values are not chosen.
    """
    kept = {
        key: [value for value in of_key if (key, str(value)) not in NOT_RUN]
        for key, of_key in values.items()
        if key not in NOT_RUN and key.replace(".", "__") not in fixed
    }
    for i in range(max(map(len, kept.values()))):
        cfg = base.copy()
        chosen = {key: of_key[i % len(of_key)] for key, of_key in kept.items()}
        chosen |= {key.replace("__", "."): value for key, value in fixed.items()}
        for key, value in {**chosen, out: str(folder / f"run_{i}")}.items():
            OmegaConf.update(cfg, key, value, merge=False)
        yield cfg


@pytest.fixture(autouse=True)
def _micro(micro: str) -> None:
    """The tiny encoder is known in every test of this file."""


@pytest.fixture
def metric(micro: str, tmp_path: Path) -> Path:
    """A model of metres with random weights."""
    torch.manual_seed(0)
    save_model(depth_anything(micro, max_depth_m=10.0, input_size=28), tmp_path / "metric")
    return tmp_path / "metric"


# What one stage cannot combine, the other runs: `pretrained` and `init`, `freeze` and feature alignment.
@pytest.mark.parametrize("stage", STAGES)
def test_every_choice_of_training_is_run(
    stage: str, tiny_world: Any, teacher_run: Path, tmp_path: Path
) -> None:
    words = tiny_world.settings(stage, tmp_path, "steps=2", "eval_every=0", "save_every=1")
    fixed: dict[str, Any] = {"model__weights": str(teacher_run)}
    if stage == "metric":
        fixed |= {"model__init": str(teacher_run)}
    if STAGES[stage].needs.teacher:
        fixed |= {"stage__teacher": str(teacher_run), "model__init": str(teacher_run)}
        fixed |= {"model__freeze": "none", "data__val__mine__root": None}
    base = composed("train", *words)
    values = booleans(base) | choices(TrainSettings) | choices(STAGES[stage].Settings, "stage.")
    losses = OF[STAGES[stage].predicts]
    beside = {name: {losses[0]: 1.0} if name in SCALE_FREE else {} for name in losses}
    values |= {"stage.terms": tuple({**beside[name], name: 1.0} for name in losses)}
    if stage == "metric":
        values |= {"model.head.bin_centers": BIN_CENTERS}
    with torch.compiler.set_stance("force_eager"):  # compile=true wraps the model, and takes no minutes
        for cfg in runs(base, values, "run_dir", tmp_path, **fixed):
            assert train.run(cfg) == 0
            assert (Path(cfg.run_dir) / "model.safetensors").exists()


def test_every_choice_of_predict_is_run(
    tiny_world: Any, teacher_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tiny_world.root / "val" / "images" / "val_0.png"
    base = composed(
        "predict", f"checkpoint={teacher_run}", f"images={images}", "near_m=1", "far_m=9", "threads=1"
    )
    for cfg in runs(base, choices(PredictSettings), "out", tmp_path):
        assert predict.run(cfg) == 0
        assert "1 predicted" in capsys.readouterr().out


def test_every_choice_of_pseudo_label_is_run(
    tiny_world: Any, teacher_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = composed("pseudo_label", *tiny_world.labeling(teacher_run, tmp_path, 3))
    values = booleans(base) | choices(PseudoLabelSettings)
    for cfg in runs(base, {key: values[key] for key in values if ".labeled." not in key}, "out", tmp_path):
        assert pseudo_label.run(cfg) == 0
        assert "is complete: 6 labels" in capsys.readouterr().out


def test_every_choice_of_evaluate_is_run(
    tiny_world: Any, metric: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    val, folder = tiny_world.root / "val", tmp_path / "predictions"
    words = [f"images={val / 'images'}", f"out={folder}", "save=npy", "threads=1"]
    assert predict.run(composed("predict", f"checkpoint={metric}", *words)) == 0
    words = [
        "protocols=folder",
        f"roots.mine={val}",
        "folder.depth_scale=1000",
        "pictures=0",
        "limit=2",
        "threads=1",
        "override.eval_size=[28,42]",  # which keep_aspect=false needs
    ]
    base = composed("evaluate", f"checkpoint=[{metric},{folder}]", *words)
    values = booleans(base) | choices(EvaluateSettings) | choices(Protocol, "override.")
    for cfg in runs(base, values, "out", tmp_path):
        # Metres go with every alignment; `quantity` is that of the folder.
        if cfg.override.align == "none":
            cfg.quantity = "depth"
        assert evaluate.run(cfg) == 0
        printed = capsys.readouterr().out
        assert "results.json" in printed
        assert "without prediction" not in printed


def test_every_choice_of_check_data_is_run(
    tiny_world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    roots = [f"data.{kind}.mine.root={tiny_world.root / kind}" for kind in ("labeled", "unlabeled", "val")]
    roots += [f"data.{kind}.mine.depth_scale=1000" for kind in ("labeled", "val")]
    base = composed("check_data", "data=folder", *roots, "workers=1", "sheet_images=0")
    values = booleans(base) | choices(CheckDataSettings)
    for cfg in runs(base, values, "out", tmp_path):
        assert check_data.run(cfg) == 0
        assert "report.json" in capsys.readouterr().out


def test_exceptions_name_settings_that_exist() -> None:
    known = choices(TrainSettings) | choices(Protocol, "override.") | choices(PredictSettings)
    for key in NOT_RUN:
        name, value = key if isinstance(key, tuple) else (key, str(known[key][0]))
        assert value in map(str, known[name])


@pytest.mark.slow
def test_compiled_training_follows_plain_training(
    start: Any, tiny_world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torch, "compile", partial(torch.compile, backend="aot_eager")
    )  # inductor takes minutes
    losses = []
    for compile_ in ("false", "true"):
        words = [f"compile={compile_}", "steps=2", "data.val.mine.root=null", "model.freeze=encoder"]
        ended = start(tiny_world.settings("teacher", tmp_path / compile_, *words))
        assert ended.code == 0, ended.err
        lines = (tmp_path / compile_ / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss/total"] for line in lines if "loss/total" in line])
    assert len(losses[0]) == 2
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
