"""Evaluation under torchrun writes the files of one process, byte for byte."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from depthany.config.entry import run_entry
from depthany.data.folder_depth import FolderDepth
from depthany.evaluate import ALIASES, SEVERAL, run
from depthany.models.files.loading import load_model
from depthany.models.model import depth_anything, save_model
from depthany.training.validation import evaluate

IMAGES = 22
SIZES = [(40, 30), (30, 40), (40, 30), (64, 36)]  # width, height
DAMAGED, UNPREDICTED = (5, 17), (3, 14)


@pytest.fixture
def garden(tmp_path: Path, micro: str) -> Path:
    """Pairs of several sizes in folders of 3, predictions in `exact`, and two protocols."""
    for i in range(IMAGES):
        name = f"{i // 3}/{i:02d}"
        width, height = SIZES[i % 4]
        image = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
        depth_mm = (1000 + 20 * image[:, :, 0].astype(np.uint16)).astype(np.uint16)
        write(tmp_path / f"garden/images/{name}.png", image)
        write(tmp_path / f"garden/depth/{name}.png", depth_mm)
        if i not in UNPREDICTED:
            (tmp_path / f"exact/{i // 3}").mkdir(parents=True, exist_ok=True)
            np.save(tmp_path / f"exact/{name}.npy", 2000.0 / depth_mm + 0.01 * image[:, :, 1])
    for i in DAMAGED:
        (tmp_path / f"garden/images/{i // 3}/{i:02d}.png").write_bytes(b"\x89PNG half")
    dataset = f"dataset: {{root: {tmp_path / 'garden'}, depth_scale: 1000}}\nmax_depth: 9\n"
    (tmp_path / "near.yaml").write_text(dataset)
    (tmp_path / "walk.yaml").write_text(f"{dataset}align_per: sequence\n")
    torch.manual_seed(0)
    save_model(depth_anything("micro", input_size=28), tmp_path / "model")
    return tmp_path


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def command(folder: Path, out: Path, *more: str) -> list[str]:
    quick = ["device=cpu", "threads=1", "workers=2", "batch_size=2", "pictures=1"]
    return [
        f"checkpoint={folder}/model,{folder}/exact",
        "quantity=disparity",
        f"protocols={folder}/near.yaml,{folder}/walk.yaml",
        f"out={out}",
        *quick,
        *more,
    ]


def alone(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> int:
    """Runs the command in this process; returns the exit code."""
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
    return run_entry("evaluate", run, several=SEVERAL, aliases=ALIASES)


def note_reads(folder: Path) -> str:
    """Code in which a process notes the images that it reads."""
    return f"""
import os
from depthany.evaluation import run as loop, tiles  # imported first: its own reading is not noted
read_one = loop.read_one
def noting(predictor, dataset, protocol, index, *rest):
    with open({str(folder)!r} + "/read_by_" + os.environ["RANK"], "a") as file:
        file.write(f"{{protocol.name}} {{predictor.label}} {{index}}\\n")
    return read_one(predictor, dataset, protocol, index, *rest)
loop.read_one = noting
"""


def test_two_ranks_write_the_files_of_one(
    garden: Path, torchrun: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert alone(monkeypatch, command(garden, tmp_path / "one", "skip_unreadable=true")) == 0
    arguments = command(garden, tmp_path / "two", "skip_unreadable=true")
    both = torchrun(arguments, before=note_reads(tmp_path), entry="evaluate")
    assert both.code == 0, both.err
    for name in ("results.json", "per_image.csv", "report.html"):
        one, two = ((tmp_path / out / name).read_text() for out in ("one", "two"))
        assert two.replace(str(tmp_path / "two"), str(tmp_path / "one")) == one, name  # out=, in the command
    scores = json.loads((tmp_path / "two/results.json").read_text())["protocols"]["walk"]["scores"]["exact"]
    assert scores["images"] == IMAGES - 4
    assert scores["without_prediction"] == [f"{i // 3}/{i:02d}" for i in UNPREDICTED]
    assert both.out.count("results.json, per_image.csv, report.html") == 1

    reads = [set((tmp_path / f"read_by_{rank}").read_text().splitlines()) for rank in (0, 1)]
    assert not reads[0] & reads[1]
    assert len(reads[0] | reads[1]) == 4 * IMAGES  # two checkpoints under two protocols
    assert min(map(len, reads)) > IMAGES
    sequences = [{int(line.split()[2]) // 3 for line in each if line.startswith("walk")} for each in reads]
    assert not sequences[0] & sequences[1]


def note_end(path: Path) -> str:
    """Code in which the second process notes when it ends."""
    return f"""
import atexit, os, time
if os.environ["RANK"] == "1":
    atexit.register(lambda: open({str(path)!r}, "w").write(str(time.time())))
"""


@pytest.mark.slow
def test_unreadable_image_ends_both_ranks_in_seconds(
    garden: Path, torchrun: Callable, tmp_path: Path
) -> None:
    write(garden / "garden/images/5/17.png", np.full((40, 30, 3), 9, np.uint8))  # one image stays damaged
    arguments = command(garden, tmp_path / "out", "pictures=0")
    failed = torchrun(arguments, before=note_end(tmp_path / "end"), entry="evaluate")
    assert time.time() - float((tmp_path / "end").read_text()) < 15
    assert failed.code != 0
    assert failed.err.count("error: ") == failed.err.count("05.png: not an image") == 1, failed.err
    assert "depthany/evaluate.py" not in failed.err  # no traceback of the command; torchrun prints its own
    assert not (tmp_path / "out/results.json").exists()


VALIDATE = """
import json, sys, torch
from depthany.data.folder_depth import FolderDepth
from depthany.system.distributed import process_group, launched_processes
from depthany.models.files.loading import load_model
from depthany.training.validation import evaluate
model, root, out = sys.argv[1:]
torch.set_num_threads(1)
with process_group(launched_processes(), torch.device("cpu")) as processes:
    sets = {"mine": FolderDepth(root, depth_scale=1000)}
    scores = evaluate(load_model(model), sets, 28, batch_size=2, processes=processes)
with open(f"{out}/{processes.rank}", "w") as file:
    json.dump(scores, file)
sys.exit(0)
"""


@pytest.mark.slow
def test_validation_scores_are_equal_on_all_ranks(garden: Path, torchrun: Callable, tmp_path: Path) -> None:
    for i in DAMAGED:
        for kind in ("images", "depth"):
            (garden / f"garden/{kind}/{i // 3}/{i:02d}.png").unlink()
    root = str(garden / "garden")
    both = torchrun([str(garden / "model"), root, str(tmp_path)], before=VALIDATE)
    assert both.code == 0, both.err
    sets = {"mine": FolderDepth(root, depth_scale=1000)}
    expected = evaluate(load_model(garden / "model"), sets, 28, batch_size=2)
    assert [json.loads((tmp_path / str(rank)).read_text()) for rank in (0, 1)] == [expected, expected]
