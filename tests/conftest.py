"""What several tests share: a tiny world of real files, a tiny encoder, and a way to start a run."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from depthany.config.entry import run_entry
from depthany.models.dinov2 import SIZES, Size
from depthany.train import primary_scores, run
from nursery import Ended, Nursery

torch.set_num_threads(1)

# An encoder of 58k parameters as one more row of the table of sizes; `vitt`, the smallest there, has 6M.
MICRO = Size("vit_small_patch14_dinov2", 24, 4, 2, 28, 8, (8, 8, 8, 8), {"v1": (0, 1, 2, 3)})
NURSERY = Nursery(repr(MICRO))
LONGEST = ("faults", "distributed")  # rooms with the longest tests
LABELED_SIZES = [(56, 42), (42, 56), (56, 42), (64, 48)]  # width, height
LABELED_FOLDERS = (("labeled", "labeled"), ("val", "val"))  # kind of set, folder
CLASSES = """classes:
  - {name: dark, rgb: [20, 40, 60]}
  - {name: middle, rgb: [120, 130, 140]}
  - {name: sky, rgb: [70, 130, 180]}
"""
UNLABELED_SIZES = [(56, 42), (42, 56), (50, 70), (30, 40), (56, 42), (90, 60)]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow; pass --slow"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))
    items.sort(key=lambda item: item.path.parent.name not in LONGEST)  # a long test at the end runs alone


@dataclass
class World:
    """Folders of labeled, unlabeled and validation images, and the settings of a short run on them."""

    root: Path

    def settings(self, stage: str, run_dir: Path, *more: str) -> list[str]:
        if stage == "segmentation":
            more = (
                *(f"data.{kind}.mine.root={self.root / folder}" for kind, folder in LABELED_FOLDERS),
                *("model.init=null", "model.init_parts=all", *more),
            )
        return [
            f"stage={stage}",
            "experiment=none",
            "model=vitt",
            "model.encoder.size=micro",
            "model.pretrained=false",
            *(["data=folder_classes"] if stage == "segmentation" else self._depth()),
            f"run_dir={run_dir}",
            "steps=6",
            "batch_size=6",
            "crop_size=28",
            "optimizer.lr=1e-3",
            "optimizer.lr_factors={encoder:1,decoder:1,head:1}",
            "threads=1",
            "workers=0",
            "device=cpu",
            "precision=fp32",
            "log_every=1",
            "image_every=0",
            "eval_every=3",
            "save_every=2",
            *more,
        ]

    def _depth(self) -> list[str]:
        return [
            "data=folder",
            f"data.labeled.mine.root={self.root / 'labeled'}",
            "data.labeled.mine.depth_scale=1000",
            f"data.unlabeled.mine.root={self.root / 'unlabeled'}",
            f"data.val.mine.root={self.root / 'val'}",
            "data.val.mine.depth_scale=1000",
        ]

    def labeling(self, teacher: Path, out: Path, shard_size: int, *more: str) -> list[str]:
        """Returns the settings of pseudo_label for all unlabeled images, a batch per shard."""
        return [
            f"teacher={teacher}",
            f"out={out}",
            "data=folder",
            f"data.unlabeled.mine.root={self.root / 'unlabeled'}",
            f"shard_size={shard_size}",
            f"batch_size={shard_size}",
            "workers=1",
            "threads=1",
            "device=cpu",
            "precision=fp32",
            *more,
        ]


@contextlib.contextmanager
def micro_encoder() -> Iterator[None]:
    """model.encoder.size=micro can be chosen inside."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "micro", MICRO)
        yield


def start_here(arguments: list[str]) -> Ended:
    """`python -m depthany.train` with these arguments, in this process."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["train", *arguments]
    try:
        with micro_encoder(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run_entry("train", run, output="run_dir", scores=primary_scores)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = argv
    return Ended(code, out.getvalue(), err.getvalue())


def start_child(arguments: list[str], before: str = "", cwd: Path | None = None) -> Ended:
    """The same in a process of its own; `before` is code that it runs first."""
    return NURSERY.start("train", arguments, before, cwd).result()


def start_torchrun(
    folder: Path, arguments: list[str], processes: int, before: str, entry: str, timeout_s: float
) -> Ended:
    """`torchrun -m depthany.<entry>` in a session of its own; see the fixture `torchrun`."""
    note = f"import os, pathlib\npathlib.Path({str(folder)!r}, str(os.getpid())).touch()\n"
    child = NURSERY.start_torchrun(processes, entry, arguments, note + before)
    try:
        return child.result(timeout_s)
    finally:  # each of its processes has a session of its own
        for group in folder.iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(group.name), signal.SIGKILL)


def signal_at_step(number: signal.Signals, step: int, target: str = "os.kill(os.getpid(), number)") -> str:
    """Code for `before` of `start_child`: a signal as the optimizer step `step` (from 1) begins."""
    return f"""
import os, torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
number, seen = {int(number)}, []
def hook(*_):
    seen.append(1)
    if len(seen) == {step}:
        {target}
register_optimizer_step_pre_hook(hook)
"""


def write_image(path: Path, width: int, height: int, seed: int) -> None:
    """A smooth coloured image with some texture."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(path)


def write_pair(root: Path, stem: str, width: int, height: int, seed: int) -> None:
    """An image, its depth in mm (1 to 6 m, growing with the image's red) and its classes (thirds of red); the
    top rows without value.
    """
    write_image(root / "images" / f"{stem}.png", width, height, seed)
    red = np.asarray(Image.open(root / "images" / f"{stem}.png"))[:, :, 0]
    depth_mm = (1000 + 5000 * (red / 255.0)).astype(np.uint16)
    depth_mm[:3] = 0
    path = root / "depth" / f"{stem}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(depth_mm).save(path)
    numbers = (red // 86).astype(np.uint8)  # 0, 1, 2
    numbers[:3] = 255
    mask = root / "masks" / f"{stem}.png"
    mask.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(numbers).save(mask)
    (root / "classes.yaml").write_text(CLASSES)


def write_world(root: Path) -> World:
    for i, (width, height) in enumerate(LABELED_SIZES):
        write_pair(root / "labeled", f"room_{i}", width, height, seed=i)
    for i, (width, height) in enumerate(UNLABELED_SIZES):
        write_image(root / "unlabeled" / f"street_{i}.jpg", width, height, seed=100 + i)
    for i, (width, height) in enumerate([(56, 42), (42, 56), (56, 42)]):
        write_pair(root / "val", f"val_{i}", width, height, seed=200 + i)
    return World(root)


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Shared by all tests: not to be written to."""
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def own_world(tmp_path: Path) -> World:
    """A world that a test may damage."""
    return write_world(tmp_path / "world")


@pytest.fixture
def micro() -> Iterator[str]:
    """The name of the tiny encoder, which is known while the test runs."""
    with micro_encoder():
        yield "micro"


@pytest.fixture(scope="session")
def with_micro() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """The same for as long as a `with` block lasts, such as that of a fixture of a module."""
    return micro_encoder


@pytest.fixture
def ctrl_c_works() -> Iterator[None]:
    """SIGINT interrupts in the test; a shell that starts pytest in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def start():
    return start_here


@pytest.fixture(scope="session")
def start_elsewhere():
    return start_child


@pytest.fixture(scope="session")
def torchrun(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Ended]:
    """`torchrun(arguments, processes=2, before="", entry="train", timeout_s=240)`: an entry in processes
    that torchrun starts, with the encoder `micro`. `before` is code that each runs first;
    `os.environ["RANK"]` tells it which it is. What torchrun itself says of a failure stands in `err` too.
    """

    def run_together(
        arguments: list[str],
        processes: int = 2,
        before: str = "",
        entry: str = "train",
        timeout_s: float = 240,
    ) -> Ended:
        folder = tmp_path_factory.mktemp("torchrun")
        return start_torchrun(folder, arguments, processes, before, entry, timeout_s)

    return run_together


@pytest.fixture(scope="session")
def nursery() -> Nursery:
    return NURSERY


@pytest.fixture(scope="session")
def signal_at():
    return signal_at_step


@pytest.fixture(scope="session")
def teacher_run(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished teacher run of 6 steps; not to be written to."""
    run_dir = tmp_path_factory.mktemp("runs") / "teacher"
    ended = start_here(tiny_world.settings("teacher", run_dir, "image_every=3"))
    assert ended.code == 0, ended.err
    return run_dir


@pytest.fixture(scope="session")
def class_run(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished segmentation run of 6 steps, with what it printed in `out.txt` beside it."""
    run_dir = tmp_path_factory.mktemp("runs") / "classes"
    ended = start_here(tiny_world.settings("segmentation", run_dir, "image_every=3"))
    assert ended.code == 0, ended.err
    (run_dir.parent / "out.txt").write_text(ended.out)
    return run_dir


@pytest.fixture(scope="session")
def student_run(tiny_world: World, teacher_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished student run of 6 steps, with what it printed in `out.txt` beside it."""
    run_dir = tmp_path_factory.mktemp("runs") / "student"
    ended = start_here(
        tiny_world.settings("student", run_dir, f"stage.teacher={teacher_run}", "image_every=3")
    )
    assert ended.code == 0, ended.err
    (run_dir.parent / "out.txt").write_text(ended.out)
    return run_dir
