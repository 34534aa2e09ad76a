"""Every command of README.md, data/README.md, docs/ and --help, on small stand-ins for its files.

`test_documented_command_is_accepted` runs each one up to its first step or prediction, and the slow test runs
those whole that need neither a download nor the data of others.
"""

import importlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmark_trees import write_kitti, write_nyu_mat
from depthany.evaluation.protocol_files import Chosen, choose
from depthany.losses.table import LOSSES
from depthany.models.dinov2 import SIZES
from depthany.models.files.official import save_official
from depthany.models.model import build_model, depth_anything, save_model
from depthany.system import plugins
from documented import ROOT, UNQUOTED, Command, documented_commands, unquoted_settings

COMMANDS = documented_commands()
OURS = [command for command in COMMANDS if command.entry is not None]
# Beginnings of the commands that are not run here, and why.
NOT_RUN = {
    "pip install": "installs packages",
    "tensorboard": "a program of its own",
    "pytest": "runs the tests",
    "python scripts/": "run by tests/test_scripts.py and tests/models/test_export.py",
}
# Parts of the commands that are accepted but not run whole, and why.
ONLY_ACCEPTED = {
    "model.weights=null": "downloads weights",
    "resnet50.safetensors": "needs weights of timm",
    "dinov2_vits14": "needs weights of DINOv2",
    "v1_": "a recipe of the paper, on its data",
    "depth_anything_v1": "the data of the paper",
    "/data/": "the data of others",
    "protocols=all": "the data of others",
    "depthany.app": "serves until Ctrl-C",
    "pseudo_labels=outputs/pseudo_labels": "needs a store; run by tests/inference/test_pseudo_label.py",
    "outputs/pseudo_labels": "needs a store; run by tests/inference/test_pseudo_label.py",
    "docs/plugin_example": "run by tests/test_plugin_example.py",
    "format=onnx": "run by tests/models/test_export.py",
    "format=coreml": "run by tests/models/test_small_exports.py",
}


def test_every_documented_command_is_run_or_excused() -> None:
    assert len(OURS) > 50
    for command in COMMANDS:
        text = " ".join(command.words)
        excuses = [beginning for beginning in NOT_RUN if text.startswith(beginning)]
        assert (command.entry is None) == bool(excuses), f"{command}: add a way to run it, or a reason"
    texts = [" ".join(command.words) for command in COMMANDS]
    for part in (*NOT_RUN, *ONLY_ACCEPTED):
        assert any(part in text for text in texts), f"{part!r} is in no command: remove the row"


def test_documented_settings_survive_a_shell() -> None:
    assert UNQUOTED.findall("`data.weights.labeled={a:1,b:3}`, scales=[1, 2]") == [
        *("data.weights.labeled={a:1,b:3}", "scales=[1, 2]")
    ]
    assert unquoted_settings() == []


REFERENCE = ("losses", "metrics", "training/stages")  # rooms of which the reference has every module, besides
HELPERS = {"difference", "order", "reduce", "constant", "pieces"}


def test_reference_has_what_others_use() -> None:
    pages = "".join(path.read_text() for path in (ROOT / "docs/api").glob("*.md"))
    assert "::: depthany.models.files.loading.load_model\n" in pages
    for room in REFERENCE:
        for path in (ROOT / "src/depthany" / room).glob("*.py"):
            if path.stem not in HELPERS | {"__init__"}:
                assert f"::: depthany.{room.replace('/', '.')}.{path.stem}\n" in pages, path


def test_documented_scripts_are_tested() -> None:
    tests = "tests/test_scripts.py", "tests/models/test_export.py"
    tested = "".join((ROOT / name).read_text() for name in tests)
    for command in COMMANDS:
        if command.words[1:] and command.words[1].startswith("scripts/"):
            script = ROOT / command.words[1]
            assert script.is_file(), command
            assert script.stem in tested or script.stem == "slurm_train", command


@pytest.fixture(scope="module")
def small_sizes() -> Iterator[None]:
    """vits, vitt and vitl are tiny networks of different widths."""
    micro = replace(SIZES["vits"], embed_dim=24, depth=4, heads=2, image_size=28)
    micro = replace(
        micro, dpt_features=8, out_channels=(8, 8, 8, 8), taps=dict.fromkeys(("v1", "v2"), (0, 1, 2, 3))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "vits", micro)
        patch.setitem(SIZES, "vitt", replace(micro, embed_dim=32))
        patch.setitem(SIZES, "vitl", replace(micro, embed_dim=40))
        yield


@pytest.fixture(scope="module")
def place(small_sizes: None, tiny_world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the commands name, by these names."""
    place, world = tmp_path_factory.mktemp("place"), tiny_world.root
    torch.manual_seed(0)
    sample = depth_anything("vitt", input_size=28).eval()
    metric = depth_anything("vitt", max_depth_m=10.0, input_size=28)
    relative = ("teacher", "student", "my_teacher", "my_student", "v1_vitl_teacher")
    relative += ("v2_teacher", "v2_student")
    classes = {"name": "classes_linear", "class_names": ["dark", "middle", "sky"]}
    encoder, levels = {"name": "dinov2", "size": "vitt"}, {"name": "levels"}
    others = {"metric": metric, "segmentation": build_model(encoder, levels, classes, 28)}
    for name, model in {**dict.fromkeys(relative, sample), **others}.items():
        save_model(model, place / "outputs" / name)
        (place / "outputs" / name / "settings.yaml").write_text("run_dir: outputs\nstage: {}\n")
    official = depth_anything("vits", input_size=28).eval()
    save_model(official, place / "outputs/my_vits")
    for size in ("vits", "vitl"):
        save_official(depth_anything(size, "v2"), place / f"depth_anything_v2_{size}.pth")
    for folder in ("data/sample/labeled/train", "mine/labeled", "NAME"):
        shutil.copytree(world / "labeled", place / folder)
    for folder in ("data/sample/unlabeled/train/images", "mine/plain", "PLAIN_IMAGES", "photos"):
        shutil.copytree(world / "unlabeled", place / folder)
    for folder in ("mine/val", "HELD_OUT", "roots/garden"):
        shutil.copytree(world / "val", place / folder)
    for split in ("labeled/train", "labeled/val", "unlabeled/val", "unlabeled/test"):
        parts = [f"{kind}/{part}" for kind in ("images", "depth", "masks") for part in ("rooms", "streets")]
        for part in parts:
            shutil.copytree(world / "val" / part.split("/")[0], place / "data/sample" / split / part)
        images = sorted((place / "data/sample" / split / "images").rglob("*.png"))
        pair = {"point1": [1, 1], "point2": [2, 2], "closer_point": "point1"}
        pairs = {path.relative_to(place / "data/sample" / split).as_posix(): [pair] for path in images}
        (place / "data/sample" / split / "annotations.json").write_text(json.dumps(pairs))
    shutil.copy(world / "labeled/classes.yaml", place / "data/sample/classes.yaml")
    write_nyu_mat(place / "roots/nyu")
    write_kitti(place / "roots/kitti")
    (place / "predictions").mkdir()
    for path in sorted((world / "val/images").iterdir()):
        np.save(place / f"predictions/{path.stem}.npy", np.ones(Image.open(path).size[::-1], np.float32))
    photo = next((place / "photos").iterdir())
    (place / "in/day").mkdir(parents=True)
    for name in ("a.jpg", "photo.jpg", "in/day/a.jpg"):
        shutil.copy(photo, place / name)
    write_clip(place / "clip.mp4")
    for name in (
        "dinov2_vits14_pretrain.pth",
        "resnet50.safetensors",
        "data/sample/encoder_vitt.safetensors",
    ):
        (place / name).touch()
    (place / "outputs/pseudo_labels").mkdir()
    for name in ("docs", "scripts"):
        (place / name).symlink_to(ROOT / name)
    return place


def write_clip(path: Path) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(5))
        stream.width, stream.height, stream.pix_fmt = 42, 28, "yuv420p"
        for value in (40, 120, 200):
            picture = np.full((28, 42, 3), value, np.uint8)
            picture[:, :21] //= 2
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


TRACED = ("onnx", "torchscript", "coreml")  # formats that take seconds


class Reached(Exception):
    """The command came to its first step."""


def stop(*_: object, **__: object) -> None:
    raise Reached


def without_counts(*arguments: Any) -> tuple[list[Chosen], dict[str, str]]:
    """The protocols that were chosen, for sets of any number of images."""
    chosen, missing = choose(*arguments)
    return [replace(one, protocol=replace(one.protocol, count=None)) for one in chosen], missing


def arguments_in(command: Command, place: Path) -> list[str]:
    """The arguments, with the folders below /data in `place`."""
    return [word.replace("=/data/", f"={place}/roots/") for word in command.arguments]


@pytest.fixture
def start(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable]:
    """`start(command, more)` runs the entry in `place` and returns its exit code and what it said."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(plugins, "_loaded", [])
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    monkeypatch.setattr("depthany.commands.evaluate_command.choose", without_counts)

    def start_entry(command: Command, *more: str) -> tuple[int | None, str]:
        module = importlib.import_module(f"depthany.{command.entry}")
        if command.python_path:
            monkeypatch.syspath_prepend(str(ROOT / command.python_path))
        monkeypatch.setattr(sys, "argv", [command.entry, *arguments_in(command, place), *more])
        try:
            with pytest.raises(SystemExit) as end:
                module.main()
        except Reached:
            return None, ""
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out + said.err

    losses = dict(LOSSES)  # to which the example's plug-in adds one
    yield start_entry
    LOSSES.clear()
    LOSSES.update(losses)
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_project"]:
        del sys.modules[name]


def stop_at_first_step(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    """Makes `Reached` be raised where the work of a command begins."""
    if not command.is_whole:
        monkeypatch.setattr(f"depthany.{command.entry}.run", stop)  # composed, and not checked
        return
    first_steps = {
        "train": ["depthany.commands.train_command.prepare_compute"],
        "predict": [
            "depthany.commands.predict_command.run_photos",
            "depthany.commands.predict_command.run_video",
        ],
        "evaluate": ["depthany.evaluation.compare.Comparison.run"],
        "pseudo_label": [
            f"depthany.commands.pseudo_label_command.{name}"
            for name in ("label", "verify_store", "draw_labels")
        ],
        "check_data": ["depthany.commands.check_data_command.announce"],
        "index": ["depthany.commands.index_command.instantiate"],
        "app": ["depthany.commands.app_command.start"],
        "export": [],
        "sky": ["depthany.commands.sky_command.find_sources"],
    }
    for name in first_steps[str(command.entry)]:
        monkeypatch.setattr(name, stop)
    for name in TRACED:
        monkeypatch.setattr(f"depthany.models.files.exports.save_{name}", stop)


def slow_if_seconds(command: Command) -> Any:
    """A recipe of the paper has some 40 groups; a launched command differs from another by its launcher."""
    is_slow = command.is_launched or any("v1_" in word or "v2_vit" in word for word in command.words)
    return pytest.param(command, marks=pytest.mark.slow if is_slow else (), id=str(command))


@pytest.mark.parametrize("command", map(slow_if_seconds, OURS))
def test_documented_command_is_accepted(
    command: Command, start: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at_first_step(monkeypatch, command)
    more = ["overwrite=true"] if command.entry == "export" else []
    more += ["data=sample"] if command.entry == "index" and not command.is_whole else []
    code, said = start(command, *more)
    is_traced = any(f"format={name}" in command.words for name in TRACED)
    ends = command.entry == "export" and not is_traced
    ends = ends or bool({"--help", "job"} & set(command.words))
    if command.is_sweep:  # its jobs come to their first step, which fails them; the students wait for those
        errors = re.findall(r"^error: job \d+ \(.*\): (.*)$", said, re.MULTILINE)
        assert len(errors) == said.count("== job ") > 0, said
        assert all(each.startswith(("Reached", "not run, since job")) for each in errors), said
    else:
        assert code == (0 if ends else None), said


TINY_RUN = ["steps=2", "batch_size=12", "crop_size=28", "model.pretrained=false", "eval_every=0"]
TINY_RUN += ["image_every=0", "workers=0", "save_every=1", "overwrite=true"]
COMPUTE = ["device=cpu", "threads=1"]


def runs_whole(command: Command) -> bool:
    text = " ".join(command.words)
    is_excused = any(part in text for part in ONLY_ACCEPTED)
    return command.is_whole and not command.is_launched and not is_excused and "--" not in text


@pytest.fixture
def fresh_outputs(place: Path, tmp_path: Path) -> Iterator[None]:
    """Gives the test outputs/ as `place` made it, and takes back what the test changes there."""
    shutil.copytree(place / "outputs", tmp_path / "outputs")
    yield
    shutil.rmtree(place / "outputs")
    shutil.move(tmp_path / "outputs", place / "outputs")


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_outputs")
@pytest.mark.parametrize("command", filter(runs_whole, OURS), ids=str)
def test_documented_command_runs_whole(command: Command, start: Callable) -> None:
    more = list(COMPUTE) if command.entry in ("train", "predict", "evaluate", "pseudo_label") else []
    if command.entry == "train":
        more += [*TINY_RUN, "crop_size=64"] if "model=timm" in command.words else TINY_RUN
    if command.entry == "export":
        more += ["overwrite=true"]
    code, said = start(command, *more)
    assert code == 0, said
