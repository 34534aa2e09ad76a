"""`--help`: quick, with the choices of its command alone and with the comments of the YAML files."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from depthany.config.entry import config_dir
from depthany.config.help_page import help_page, own_groups
from depthany.config.setting_comments import SettingComments
from documented import documented_commands

COMMANDS = ("train", "evaluate", "predict", "pseudo_label", "check_data", "index", "export", "app", "sky")
HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "cv2",
    "PIL",
    "h5py",
    "tensorboard",
    "gradio",
    "transformers",
    "numpy",
)
ALL_PAGES = f"""
import contextlib, importlib, io, json, sys
pages = dict()
for name in {COMMANDS}:
    sys.argv = [name, "--help"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        importlib.import_module("depthany." + name).main()
    pages[name] = out.getvalue()
print(json.dumps([pages, [name for name in {HEAVY} if name in sys.modules]]))
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], list[str]]:
    """The page of each command, and which heavy libraries the process has imported by then."""
    folder = tmp_path_factory.mktemp("empty")
    done = subprocess.run([sys.executable, "-c", ALL_PAGES], capture_output=True, text=True, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert not list(folder.iterdir())
    return tuple(json.loads(done.stdout))


@pytest.fixture(scope="module")
def pages(printed: tuple[dict[str, str], list[str]]) -> dict[str, str]:
    return printed[0]


def test_help_of_all_commands_imports_no_torch(printed: tuple[dict[str, str], list[str]]) -> None:
    assert printed[1] == []


def shown_choices(page: str) -> list[str]:
    part = re.split("== (?:Choices|Names)", page.partition("== Settings")[0], maxsplit=1)[-1]
    return re.findall(r"^(\w+): ", part, re.MULTILINE) if "==" in page.partition("== Settings")[0] else []


def test_help_lists_choices_of_its_command_alone(pages: dict[str, str]) -> None:
    found = {name: shown_choices(page) for name, page in pages.items()}
    data_alone = {name: ["data"] for name in ("pseudo_label", "check_data", "index")}
    none = {name: [] for name in ("predict", "export", "app", "sky")}
    of_training = ["model", "head", "data", "perturb", "stage", "experiment"]
    assert found == {"train": of_training, "evaluate": ["protocols"], **data_alone, **none}
    assert "kitti_garg652" not in pages["predict"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_every_setting_and_comment(command: str, pages: dict[str, str]) -> None:
    path = config_dir() / f"{command}.yaml"
    page, comments = " ".join(pages[command].split()), SettingComments([("", path, False)])
    written = set(yaml.safe_load(path.read_text())) - {"defaults", "hydra"}
    assert written
    for key in written:
        assert re.search(rf"^{key}:", pages[command], re.MULTILINE), key
        words = " ".join([*comments.above(key), comments.beside(key)]).split()[:4]
        assert " ".join(words) in page.replace(" # ", " "), key


def test_keys_of_documents_are_keys_of_help(pages: dict[str, str]) -> None:
    for command in documented_commands():
        if command.entry is None:
            continue
        for word in command.arguments:
            key, equals, _ = word.partition("=")
            if equals and not re.match(r"-|hydra|\w+@", key):
                top = key.lstrip("+~").partition(".")[0]
                assert re.search(rf"^{top}:", pages[command.entry], re.MULTILINE), f"{command}: {key}"


def test_help_shows_settings_of_chosen_stage() -> None:
    page = re.sub(r"\n +# ", " ", help_page("train", ["stage=metric"], {}))
    assert "canonical_focal: null" in page and "name: metric_bins" in page
    assert "feature_alignment" not in page
    assert "clip_norm: 0.1" in page and "share of clipped steps (stage/metric.yaml; without it null)" in page
    assert "(experiment_of_stage/sample_metric.yaml; without it 20)" in page


def test_help_shows_equal_sets_once() -> None:
    page = help_page("train", ["stage=teacher"], {})
    assert page.count("h5_key: ") == 1
    assert "the rest as data.labeled.sample" in page


def test_help_tells_protocol_files_from_groups() -> None:
    page = help_page("evaluate", ["protocols=da2k"], {"protocol": "protocols"})
    assert "== Names for protocols= (files in configs/protocol/) ==\nprotocols: " in page
    assert "Choices" not in page
    assert "Choices (name=choice" in help_page("train", ["stage=teacher"], {})


def test_groups_are_those_of_the_defaults() -> None:
    assert list(own_groups("index")) == ["data"]
    assert own_groups("predict") == {}


SETTINGS = """# About the file.
defaults: [_self_]

# Above.
a: 1      # beside a,
          # and below
# Of b.
b:        # a mapping
  c: {d: 1, e: 2}  # of c
  f: 3
hydra: {g: 1}  # not ours
"""


def test_comments_are_found_beside_below_and_above(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(SETTINGS)
    (tmp_path / "more.yaml").write_text("b: {f: 4}  # less\na: 1\n")
    files = [("", tmp_path / "mine.yaml", False), ("", tmp_path / "more.yaml", True)]
    comments = SettingComments(files)
    assert (comments.above("a"), comments.beside("a")) == (["Above."], "beside a, and below")
    assert (comments.above("b"), comments.beside("b")) == (["Of b."], "a mapping")
    assert comments.beside("b.c") == "of c" and not comments.has("b.c.d")
    assert comments.beside("b.f") == f"({tmp_path.name}/more.yaml; without it 3)"
    assert not comments.has("hydra.g") and not comments.has("defaults")
    below = SettingComments([("data.mine", tmp_path / "mine.yaml", False)])
    assert below.beside("data.mine.b.c") == "of c"
