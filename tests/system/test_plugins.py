"""Modules of the user: imported once, and errors that say which and where."""

import sys
from pathlib import Path

import pytest
import torch

from depthany.models.files.loading import load_model
from depthany.models.heads.relative import RelativeHead
from depthany.models.model import build_model, save_model
from depthany.models.tables import HEADS
from depthany.system import plugins
from depthany.system.plugins import load_plugins, loaded_plugins, missing_plugins


@pytest.fixture(autouse=True)
def none_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plugins, "_loaded", [])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)


def write(path: Path, code: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)


def test_plugin_in_current_folder_is_imported_once(tmp_path: Path) -> None:
    write(tmp_path / "plugin_a/__init__.py", "")
    write(tmp_path / "plugin_a/depth.py", "import sys\nsys.plugin_a = getattr(sys, 'plugin_a', 0) + 1\n")
    load_plugins(["plugin_a.depth"])
    load_plugins(["plugin_a.depth"])
    assert sys.plugin_a == 1
    assert loaded_plugins() == ["plugin_a.depth"]
    assert missing_plugins(["plugin_a.depth", "plugin_b"]) == ["plugin_b"]


def test_current_folder_is_searched_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # a spawned process would take it for another folder
    write(tmp_path / "plugin_d.py", "")
    load_plugins(["plugin_d"])
    assert str(tmp_path) in sys.path


def test_missing_module_is_named_with_folders(tmp_path: Path) -> None:
    write(tmp_path / "plugin_c/__init__.py", "")
    with pytest.raises(ValueError, match=f"no module named plugin_c.no_such in .*{tmp_path}.*PYTHONPATH"):
        load_plugins(["plugin_c.no_such"])
    with pytest.raises(ValueError, match="plugins: no module named no_such_project in"):
        load_plugins(["no_such_project.depth"])
    assert loaded_plugins() == []


@pytest.mark.parametrize(
    "code, message",
    [
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("x = 1\nx.y", "AttributeError: 'int' object has no attribute 'y' .*, line 2"),
        ("def f(:", "SyntaxError"),
    ],
)
def test_fault_in_plugin_is_told_with_its_line(tmp_path: Path, code: str, message: str) -> None:
    name = f"plugin_{abs(hash(code))}"
    write(tmp_path / f"{name}.py", code)
    with pytest.raises(ValueError, match=f"plugins: {name} cannot be imported: {message}"):
        load_plugins([name])


def test_no_list_is_refused() -> None:
    with pytest.raises(ValueError, match=r"plugins=depth: expected a list of modules"):
        load_plugins("depth")


def test_model_without_its_plugin_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro: str
) -> None:
    write(tmp_path / "plugin_head.py", "")
    load_plugins(["plugin_head"])
    with monkeypatch.context() as patch:
        patch.setitem(HEADS, "mine", RelativeHead)
        torch.manual_seed(0)
        model = build_model({"name": "dinov2", "size": micro}, head={"name": "mine"}, input_size=28)
        save_model(model, tmp_path / "model")
        assert load_model(tmp_path / "model").config["head"] == model.config["head"]
    monkeypatch.setattr(plugins, "_loaded", [])
    with pytest.raises(ValueError, match=r"unknown head 'mine'.* trained with plugins=\[plugin_head\]: pass"):
        load_model(tmp_path / "model")
