"""Imports point one way: entries -> stages -> losses, models, data."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "depthany"
PARTS = ("losses", "models", "data", "evaluation")
LEAF = ["depthany", "files"]  # below everything: how to write a file whole


def imported(path: Path) -> set[str]:
    """Modules of ours that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.split(".")[0] == "depthany"}


def files_of(part: str) -> list[Path]:
    files = [PACKAGE / f"{part}.py"] if part == "losses" else sorted((PACKAGE / part).rglob("*.py"))
    assert all(path.is_file() for path in files)
    assert files
    return files


def test_losses_models_data_and_evaluation_know_nothing_of_each_other_nor_of_what_is_above() -> None:
    for part in PARTS:
        for path in files_of(part):
            foreign = {
                name for name in imported(path) if name.split(".")[:2] not in (["depthany", part], LEAF)
            }
            assert not foreign, f"{path.relative_to(PACKAGE)} imports {foreign}"


def test_what_all_may_import_imports_none_of_ours() -> None:
    for name in ("files", "distributed"):
        assert not imported(PACKAGE / f"{name}.py")


def test_only_the_wiring_and_the_entries_see_the_configuration() -> None:
    seeing = {
        path.stem
        for path in PACKAGE.rglob("*.py")
        if any(word in path.read_text() for word in ("DictConfig", "import hydra", "from hydra"))
    }
    entries = {"train", "evaluate", "predict", "pseudo_label", "export", "app", "check_data", "index"}
    assert seeing <= {"wiring", "settings", "protocols", "config", *entries}


def test_prediction_knows_neither_training_nor_entries() -> None:
    below = {"models", "data", "evaluation", "prediction", "files", "pictures", "progress"}
    for path in sorted((PACKAGE / "prediction").rglob("*.py")):
        assert {name.split(".")[1] for name in imported(path)} <= below, path.name


def test_scoring_knows_neither_training_nor_entries() -> None:
    below = {"models", "data", "evaluation", "prediction", "scoring", "files", "pictures", "progress"}
    below.add("distributed")  # which imports none of ours: images are shared among processes
    for path in sorted((PACKAGE / "scoring").rglob("*.py")):
        assert {name.split(".")[1] for name in imported(path)} <= below, path.name


def test_checking_knows_only_data_and_how_to_show_it() -> None:
    below = {"data", "checking", "files", "pictures"}
    for path in sorted((PACKAGE / "checking").rglob("*.py")):
        assert {name.split(".")[1] for name in imported(path)} <= below, path.name


def test_stages_know_only_the_parts_and_nothing_below_the_loop_knows_the_loop() -> None:
    assert {name.split(".")[1] for name in imported(PACKAGE / "stages.py")} <= set(PARTS)
    for name in ("stages", "optim", "validation", "checkpoint", "tracking", "run_dir", "loop", "wiring"):
        assert not any(each.startswith("depthany.train") for each in imported(PACKAGE / f"{name}.py"))
