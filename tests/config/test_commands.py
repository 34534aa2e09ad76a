"""What the nine commands share: settings that are read, plug-ins, further configs."""

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from depthany.commands.app_command import AppSettings
from depthany.commands.check_data_command import CheckDataSettings
from depthany.commands.evaluate_command import EvaluateSettings
from depthany.commands.export_command import ExportSettings
from depthany.commands.index_command import IndexSettings
from depthany.commands.predict_command import PredictSettings
from depthany.commands.pseudo_label_command import PseudoLabelSettings
from depthany.commands.sky_command import SkyCommandSettings
from depthany.config.entry import config_dir
from depthany.data.class_crops import ClassCrops
from depthany.data.perturb import Perturb
from depthany.data.views import Views
from depthany.system.plugins import load_plugins
from depthany.system.rules import rules
from depthany.training.optim import LrFactors
from depthany.training.settings import LossSettings, TrainSettings
from depthany.training.stages.segmentation import WindowSettings
from depthany.training.stages.student import ImageWeights
from depthany.training.stages.table import STAGES

SOURCE = Path(__file__).resolve().parents[2] / "src" / "depthany"
SETTINGS: dict[str, type] = {
    "train": TrainSettings,
    "evaluate": EvaluateSettings,
    "predict": PredictSettings,
    "pseudo_label": PseudoLabelSettings,
    "app": AppSettings,
    "export": ExportSettings,
    "check_data": CheckDataSettings,
    "index": IndexSettings,
    "sky": SkyCommandSettings,
}
each_command = pytest.mark.parametrize("command", SETTINGS)


@each_command
def test_every_setting_of_a_command_is_read(command: str) -> None:
    code = (SOURCE / f"commands/{command}_command.py").read_text() + (SOURCE / "config/sweep.py").read_text()
    if command == "train":
        code += "".join((SOURCE / f"training/{name}.py").read_text() for name in ("build", "checks"))
    for each in fields(SETTINGS[command]):
        assert re.search(rf"(cfg|settings)\.{each.name}\b", code), f"{each.name} is never read"


@each_command
def test_empty_output_path_is_refused(command: str) -> None:
    checked = rules(SETTINGS[command])
    for name in {"out", "run_dir"} & {each.name for each in fields(SETTINGS[command])}:
        for empty in ("", " "):
            with pytest.raises(ValueError, match=f"{name}= is empty: expected a path"):
                checked[name].check(name, empty)


TRAINING_FILES = [
    f"training/{name}.py"
    for name in (
        *("build", "checks", "draw_order", "early_stopping", "ema", "loop", "optim"),
        *("stages/student", "stages/base", "stages/metric", "stages/segmentation"),
    )
]


def leaves(settings: type) -> set[str]:
    """Names of the settings of nested dataclasses."""
    names = set[str]()
    for each in fields(settings):
        nested = each.default_factory
        names |= leaves(nested) if is_dataclass(nested) and isinstance(nested, type) else {each.name}
    return names


def test_every_setting_of_training_groups_is_read() -> None:
    code = "".join((SOURCE / name).read_text() for name in ("commands/train_command.py", *TRAINING_FILES))
    code += "".join(path.read_text() for path in config_dir().rglob("*.yaml"))  # such as ${data.index_dir}
    passed_whole = leaves(Perturb) | leaves(LossSettings)  # as keyword arguments
    passed_whole |= leaves(ImageWeights) | leaves(LrFactors)  # by vars()
    passed_whole |= leaves(Views) | leaves(ClassCrops)  # to the data set
    passed_whole |= leaves(WindowSettings)  # by vars()
    passed_whole |= {"encoder", "decoder", "head"}  # to `build_model`
    names = (
        leaves(TrainSettings).union(*(leaves(stage.Settings) for stage in STAGES.values()))
        - passed_whole
        - {"plugins"}
    )
    for name in names:
        pattern = rf"(settings|alignment|optimizer|stage|data|model_cfg|early_stopping)\.{name}\b"
        assert re.search(pattern, code), f"{name} is never read"


@each_command
def test_yaml_and_dataclass_have_the_same_settings(command: str) -> None:
    texts = [(config_dir() / f"{name}.yaml").read_text() for name in ("command", command)]
    written = {key for text in texts for key in re.findall(r"^(\w+):", text, re.MULTILINE)}
    groups = set(re.findall(r"^  - (\w+): ", texts[1], re.MULTILINE)) - {"experiment", "head"}
    names = {each.name for each in fields(SETTINGS[command])}
    assert names == (written | groups) - {"defaults", "hydra"}


def test_hydra_folders_stand_once() -> None:
    for word in ("output_subdir", "job_logging"):
        holders = [path.name for path in config_dir().rglob("*.yaml") if word in path.read_text()]
        assert holders == ["command.yaml"], word


PLUGIN = """
from depthany.data.folder_depth import FolderDepth
class Mine(FolderDepth):
    pass
print("plug-in imported")
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's project: a module `own_sets`, and a YAML group that names a class of it."""
    (tmp_path / "own_sets.py").write_text(PLUGIN)
    (tmp_path / "configs" / "data").mkdir(parents=True)
    (tmp_path / "configs/data/mine.yaml").write_text(
        "defaults:\n  - folder\n  - _self_\nlabeled:\n  mine:\n    _target_: own_sets.Mine\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_config_dir_and_plugins_train_on_own_set(
    start: Callable, tiny_world, project: Path, tmp_path: Path
) -> None:
    words = tiny_world.settings("teacher", tmp_path / "run", "steps=1", "eval_every=0")
    words[words.index("data=folder")] = "data=mine"
    ended = start(["plugins=[own_sets]", "--config-dir", str(project / "configs"), *words])
    assert ended.code == 0, ended.err
    assert ended.out.startswith("plug-in imported\n")
    assert "plugins:\n- own_sets\n" in (tmp_path / "run/settings.yaml").read_text()


def test_choices_of_config_dir_are_listed(start: Callable, project: Path, tmp_path: Path) -> None:
    ended = start([f"--config-dir={project / 'configs'}", "stage=teacher", "data=nothing"])
    assert "unknown data 'nothing'; choose from ade20k, cityscapes, depth_anything_metric" in ended.err
    assert ", mine, " in ended.err


def test_misspelt_key_of_config_dir_has_a_hint(start: Callable, project: Path) -> None:
    words = [f"--config-dir={project / 'configs'}", "stage=teacher", "data=mine"]
    ended = start([*words, "data.labeled.mine.depth_scal=1"])
    assert "did you mean data.labeled.mine.depth_scale?" in ended.err
    assert "did you mean data?" in start(["stage=teacher", "dat=mine"]).err


BAD_PLUGINS = {
    "plugins=[no_such.module]": "plugins: no module named no_such in ",
    "plugins=[broken]": "plugins: broken cannot be imported: ZeroDivisionError: division by zero",
    "plugins=[lacking]": "plugins: lacking cannot be imported: ModuleNotFoundError: No module named 'no_s",
    "plugins=broken": "plugins=broken: expected a list of modules",
}


@pytest.mark.parametrize("word, message", BAD_PLUGINS.items(), ids=BAD_PLUGINS)
def test_bad_plugin_ends_in_one_line(start: Callable, project: Path, word: str, message: str) -> None:
    (project / "broken.py").write_text("x = 1\ny = x / 0\n")
    (project / "lacking.py").write_text("import no_such\n")
    ended = start(["stage=teacher", word])
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert message in ended.err
    if "[broken]" in word:
        assert f"({project / 'broken.py'}, line 2)" in ended.err


def test_plugin_module_is_not_run_twice(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "counted.py").write_text('print("once")\n')
    load_plugins(["counted", "counted"])
    assert capsys.readouterr().out == "once\n"
