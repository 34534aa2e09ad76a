"""Paths on the command line mean themselves, in every command, and no word of Hydra's grammar is printed."""

import inspect
import re
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra._internal.utils import get_args_parser
from hydra.utils import get_class
from omegaconf import OmegaConf

from depthany import app, check_data, evaluate, export, index, predict, pseudo_label, sky, train
from depthany.config.entry import config_dir, run_entry
from depthany.config.paths import expand_home, is_path, split_paths
from depthany.config.words import FLAGS, hydra_words, parsed

# All but / and NUL can be in the name of a file.
NASTY = [
    "my photos",
    " leading and trailing ",
    "(1)",
    "it's",
    'a "quote"',
    "'quoted",
    "#1",
    "[old]",
    "[a,b]",
    "a,b",
    "a=b",
    "{x}",
    "{a:b}",
    "$HOME",
    "100%",
    "фото/日本 é",
    "back\\slash\\",
    "\\'",
    "line\nbreak\ttab",
    "-x",
    "--out",
    "~backup",
    "2024_11",
    "1e3",
    "007",
    "true",
    "nullable",
    "C:\\x\\",
    "a;b&c|d<e>f`g^h!i@j*k?l",
    "choice(a)",
]
TRAINING = [
    "run_dir",
    "pseudo_labels",
    "stage.teacher",
    "model.weights",
    "model.init",
    "stage.feature_alignment.weights",
    "data.index_dir",
    "data.labeled.mine.root",
    "data.labeled.mine.images",
    "data.labeled.mine.depth",
    "data.labeled.mine.list_file",
    "data.labeled.mine.sky_masks",
    "data.unlabeled.mine.root",
    "data.val.mine.root",
    "+data.labeled.more.pose_file",
]
PATHS: dict[str, tuple[list[str], list[str]]] = {  # by command: its paths, and what else it needs
    "train": (TRAINING, ["stage=student", "data=folder"]),
    "evaluate": (["checkpoint", "protocols", "out", "roots.nyu", "roots.mine"], []),
    "predict": (["checkpoint", "images", "out"], []),
    "pseudo_label": (["teacher", "out", "verify", "inspect", "data.unlabeled.mine.root"], ["data=folder"]),
    "check_data": (["out", "data.labeled.mine.root", "data.val.mine.root"], ["data=folder"]),
    "index": (["data.unlabeled_root", "data.index_dir"], ["data=depth_anything_v1"]),
    "export": (["checkpoint", "out"], []),
    "app": (["checkpoint"], []),
    "sky": (["checkpoint", "images", "out"], []),
}
COMMANDS: dict[str, Any] = {
    each.__name__.rpartition(".")[2]: each
    for each in (app, check_data, evaluate, export, index, predict, pseudo_label, sky, train)
}


def composed(command: str, *words: str) -> Any:
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        return hydra.compose(command, hydra_words(words, evaluate.SEVERAL if command == "evaluate" else ()))


@pytest.mark.parametrize("command", PATHS)
def test_any_path_reaches_every_command(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("[old]", "[a,b]"):  # else it would be a list of roots
        Path(name).mkdir()
    keys, more = PATHS[command]
    rounds = len(NASTY) // len(keys) + 1 if command == "train" else 1
    for shift in range(rounds):  # in train every name, each under another key
        names = {key: NASTY[(shift * len(keys) + i) % len(NASTY)] for i, key in enumerate(keys)}
        cfg = composed(command, *more, *(f"{key}={name}" for key, name in names.items()))
        for key, name in names.items():
            assert OmegaConf.select(cfg, key.lstrip("+")) == name


@pytest.mark.parametrize("name", NASTY)
def test_any_path_is_one_value(name: str) -> None:
    for key in ("run_dir", "checkpoint", "roots.mine", "hydra.sweep.dir"):
        assert parsed(hydra_words([f"{key}={name}"])[0]).value() == name


def test_home_is_expanded_as_in_shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    more = ["stage=student", "data=folder", "data.unlabeled.mine.root=${data.labeled.mine.root}/more"]
    cfg = composed(
        "train",
        *more,
        "data.labeled.mine.root=~/x (1)",
        "run_dir=~",
        "model.init=a~b",
        "+data.val.b.root=['~/c']",
    )
    expand_home(cfg)
    assert (cfg.data.labeled.mine.root, cfg.run_dir, cfg.model.init) == ("/home/me/x (1)", "/home/me", "a~b")
    assert (cfg.data.unlabeled.mine.root, cfg.data.val.b.root) == ("/home/me/x (1)/more", ["/home/me/c"])
    two = composed("evaluate", "checkpoint=~/a,~/b", "protocols=folder")
    expand_home(two)
    assert two.checkpoint == "/home/me/a,/home/me/b"


def test_path_that_exists_may_have_commas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b,c").touch()
    assert split_paths("checkpoint", "x,a,b,c,y") == ["x", "a,b,c", "y"]
    assert split_paths("checkpoint", ["p,q", "r"]) == ["p,q", "r"]
    assert hydra_words(["-m", "checkpoint=a,b,c"])[1] == "checkpoint='a,b,c'"


AS_WRITTEN = [
    "checkpoint=[a,b]",
    "images='a b.jpg'",
    "out=null",
    "steps=3",
    "optimizer.betas=[0.9,0.99]",
    "model=vits",
    "~stage.trim",
    "+a.b=1",
]


@pytest.mark.parametrize("word", AS_WRITTEN)
def test_numbers_lists_and_quotes_are_hydras(word: str) -> None:
    assert hydra_words([word], ("checkpoint",)) == [word]


SWEEPS = {
    "seed=0,1": "seed=0,1",
    "seed=range(0,3)": "seed=range(0,3)",
    "out=/a (1),/b": "out='/a (1)','/b'",
    "model.weights=null,2024_01": "model.weights=null,'2024_01'",
    "run_dir='a,b',c": "run_dir='\\'a','b\\'','c'",
    "run_dir='a,b','c'": "run_dir='a,b','c'",
    "colormap=é,b": "colormap='é','b'",
}


@pytest.mark.parametrize("word, expected", SWEEPS.items())
def test_commas_under_multirun_are_several_values(word: str, expected: str) -> None:
    assert hydra_words(["-m", word]) == ["-m", expected]


REFUSED = {
    "photo.jpg": "'photo.jpg' is not a setting: settings are key=value",
    "--checkpoint x": "--checkpoint: settings are key=value, without dashes: checkpoint=x",
    "--batch-size=4": "--batch-size=4: settings are key=value, without dashes: batch_size=4",
    "--flip": "--flip: settings are key=value, without dashes: flip=...",
    "-x": "-x: settings are key=value, without dashes: x=...",
    "--cfg": "--cfg needs a value (job, hydra, all)",
    "--cfg jobs": "unknown --cfg 'jobs'; choose from job, hydra, all",
    "--config-dir": "--config-dir needs a value",
    "größe=3": "the name of a setting has the letters a to z, digits, _ and dots, not 'größe'",
    "scales=[1.0": "scales=[1.0: its brackets, braces or quotes do not match",
    "seed=0,1": "seed=0,1: several values are for -m",
    "out=${images": "${...} refers to another setting, such as ${seed}, and this one cannot be read",
    "batch_size=4)": "batch_size: Value '4)'",
}
GRAMMAR = re.compile(r"antlr|[Ll]exer|mismatched|expecting|viable|token|EOF|BRACE_|hydra\.cc|usage:")


@pytest.mark.parametrize("command", COMMANDS)
def test_refused_words_end_in_one_plain_line(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = {"train": ["stage=teacher"], "index": ["data=sample"]}.get(command, [])
    for words, expected in REFUSED.items():
        if command != "predict" and words.startswith(("batch_size", "out")):
            continue  # not a setting of all commands
        monkeypatch.setattr(
            "sys.argv",
            [
                command,
                *needed,
                *(["checkpoint=x", "images=y"] if command == "predict" else []),
                *words.split(" "),
            ],
        )
        assert run_entry(command, COMMANDS[command].run) == 2
        told = capsys.readouterr()
        assert told.out == "" and told.err.count("\n") == 1 and expected in told.err, told
        assert not GRAMMAR.search(told.err), told.err


def test_flags_are_those_of_hydra() -> None:
    ours, theirs = dict(FLAGS), get_args_parser()._option_string_actions
    assert ours.keys() == theirs.keys()
    for flag, action in theirs.items():
        takes = "perhaps" if action.nargs == "?" else "no" if action.nargs == 0 else "yes"
        assert ours[flag] == takes, flag


def test_flags_may_stand_between_settings() -> None:
    words = ["stage=teacher", "--config-dir", "x", "-m", "--info", "defaults", "seed=1"]
    assert hydra_words(words) == ["--config-dir", "x", "-m", "--info", "defaults", "stage=teacher", "seed=1"]


NO_PATHS = {"depth_scale", "min_depth", "max_depth", "resize_depth", "mask_suffix"}


def test_path_arguments_of_sets_are_known_as_paths() -> None:
    names = {"root", "images", "depth", "list_file", "sky_masks", "index_dir"}
    for path in (config_dir() / "dataset").glob("*.yaml"):
        target = get_class(OmegaConf.load(path)._target_)
        for each in inspect.signature(target).parameters.values():
            if re.search(r"root|path|file|dir|csv|mask|folder", each.name) and "bool" not in str(
                each.annotation
            ):
                names.add(each.name)
    assert all(is_path(f"data.labeled.mine.{name}") for name in names - NO_PATHS), names
    assert not any(
        is_path(key) for key in ("stage.weights", "seed", "crop_size", "inspect_images", "perturb")
    )


def test_config_dir_may_have_any_name(start: Any, tmp_path: Path) -> None:
    folder = tmp_path / "my 'configs' [1], (x)"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "mine.yaml").write_text("defaults:\n  - folder\n")
    ended = start(["--config-dir", str(folder), "stage=teacher", "data=nothing"])
    assert ", mine, " in ended.err
    ended = start(["stage=teacher", f"--config-dir={folder}", "data=mine", "stepz=1"])
    assert "did you mean steps?" in ended.err


def test_run_in_a_folder_of_any_name(start: Any, tmp_path: Path, own_world: Any) -> None:
    folder = tmp_path / "~a b (1) '\"#[x],=y{z}$%é日本" / "b] [/x]"
    folder.mkdir(parents=True)
    world = type(own_world)(own_world.root.rename(folder / "w [1]"))
    assert start(world.settings("teacher", folder / "run", "steps=1", "eval_every=0")).code == 0
    words = [f"stage.teacher={folder / 'run'}", "steps=1", "eval_every=0"]
    ended = start(world.settings("student", folder / "b,c", *words))
    assert ended.code == 0, ended.err
    assert (folder / "b,c" / "model.safetensors").exists()


def test_evaluation_of_a_run_of_any_name(
    start: Any, tmp_path: Path, own_world: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, micro: str
) -> None:
    world = type(own_world)(own_world.root.rename(tmp_path / "w (1), [b]"))
    run = tmp_path / "x=[/b],[c]"
    assert start(world.settings("teacher", run, "steps=1", "eval_every=0")).code == 0
    words = [
        f"checkpoint={run}",
        "protocol=folder",
        f"roots.mine={world.root / 'val'}",
        "folder.depth_scale=1000",
    ]
    quick = [f"out={tmp_path / '#1'}", "device=cpu", "threads=1", "pictures=0", "override.input_size=30"]
    monkeypatch.setattr("sys.argv", ["evaluate", *words, *quick])
    code = run_entry("evaluate", evaluate.run, several=evaluate.SEVERAL, aliases=evaluate.ALIASES)
    told = capsys.readouterr()
    assert (code, told.err) == (0, "")
    assert "│ b],[c]" in told.out, "in the table, too, a name is no markup"
    assert "folder, b],[c]: input_size=30 (shorter side 42: multiples of 14)" in told.out
