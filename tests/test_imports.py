"""Imports point one way: commands -> training -> evaluation -> inference -> models, data -> the rest."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "depthany"
COMMANDS = {"train", "evaluate", "predict", "pseudo_label", "check_data", "index", "export", "app", "sky"}
BELOW = {  # room -> the rooms that it may import, besides itself
    "system": set(),
    "losses": set(),
    "metrics": set(),
    "display": {"system"},
    "models": {"system"},
    "data": {"system"},
    "checking": {"data", "display", "system"},
    "config": {"system"},
    "inference": {"models", "data", "metrics", "display", "system"},
    "evaluation": {"inference", "models", "data", "metrics", "display", "system", "config"},
    "training": {
        *("evaluation", "inference", "models", "data", "losses", "metrics", "display", "system", "config")
    },
}
BELOW["commands"] = {*BELOW}
SEE_THE_CONFIGURATION = {
    "training/build",
    "training/checks",
    "evaluation/protocol_files",
}


def imported(path: Path) -> set[str]:
    """Modules of ours that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            names.add(node.module or "")
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.split(".")[0] == "depthany"}


def module_of(path: Path) -> str:
    """Such as training/loop."""
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def test_package_holds_commands_and_rooms() -> None:
    found = {path.stem for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert found == {"__init__", *COMMANDS, *BELOW}
    assert {path.stem for path in (PACKAGE / "commands").glob("*_command.py")} == {
        f"{name}_command" for name in COMMANDS
    }


@pytest.mark.parametrize("room", BELOW)
def test_room_imports_only_rooms_below(room: str) -> None:
    for path in sorted((PACKAGE / room).rglob("*.py")):
        rooms = {name.split(".")[1] for name in imported(path) if "." in name}  # not the package itself
        assert rooms <= BELOW[room] | {room}, module_of(path)


def test_entries_import_commands_when_work_begins() -> None:
    for name in COMMANDS:
        tree = ast.parse((PACKAGE / f"{name}.py").read_text())
        at_once = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
        assert at_once == ["omegaconf", "depthany.config.entry"], name
        assert imported(PACKAGE / f"{name}.py") == {at_once[1], f"depthany.commands.{name}_command"}


def test_only_build_and_commands_see_the_configuration() -> None:
    seeing = {
        module_of(path)
        for path in PACKAGE.rglob("*.py")
        if path.parent.name not in ("config", "commands")
        and any(word in path.read_text() for word in ("DictConfig", "import hydra", "from hydra"))
    }
    assert seeing <= SEE_THE_CONFIGURATION | COMMANDS


def test_configuration_stays_out_of_evaluation() -> None:
    for path in sorted((PACKAGE / "evaluation").rglob("*.py")):
        if path.stem != "protocol_files":
            assert not any(name.startswith("depthany.config") for name in imported(path)), module_of(path)


def test_no_two_modules_share_a_name() -> None:
    names = [path.stem for path in PACKAGE.rglob("*.py") if path.stem != "__init__"]
    assert {name for name in names if names.count(name) > 1} <= {
        "table",  # what a room chooses from by name
    }
