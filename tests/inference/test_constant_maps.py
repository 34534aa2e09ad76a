"""Maps that are the same number everywhere are counted and named by every command that makes maps."""

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from media import pixels, write_video
from PIL import Image

from depthany.config.entry import run_entry
from depthany.inference import labeling
from depthany.metrics.constant import is_constant
from depthany.models.infer import resize_map
from depthany.models.model import save_model
from depthany.pseudo_label import run as run_labeling

WHY = "a metric file that is read as a relative one (pass max_depth)"


@pytest.fixture
def dead(model, tmp_path: Path) -> Path:
    """A run whose model predicts 0 everywhere."""
    torch.nn.init.zeros_(model.head.conv3.weight)
    torch.nn.init.constant_(model.head.conv3.bias, -1.0)
    save_model(model, tmp_path / "dead")
    return tmp_path / "dead"


def test_constant_is_told_from_smooth_but_for_rounding() -> None:
    constant = torch.full((7, 9), 0.1)
    assert is_constant(resize_map(constant, (131, 257)).numpy())
    assert is_constant(np.zeros((3, 3)))
    assert not is_constant(np.linspace(20.0, 20.001, 9))
    assert not is_constant(np.zeros((1, 1)))


def test_predict_counts_and_names_constant_maps(predict, dead: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.fromarray(pixels(28, 42, seed=1)).save(tmp_path / f"{name}.png")
    write_video(tmp_path / "c.mp4", [pixels(28, 42, seed=i) for i in range(3)], Fraction(10))
    (tmp_path / "list.txt").write_text(
        "".join(f"{tmp_path / name}\n" for name in ("a.png", "b.png", "c.mp4"))
    )
    ended = predict(f"checkpoint={dead}", f"images={tmp_path / 'list.txt'}")
    assert ended.code == 0
    assert "3 predicted" in ended.out
    assert ended.err.startswith("warning: 5 of 5 maps are constant and say nothing about the image (a.png, b")
    assert "c.mp4 at 0.00 s, c.mp4 at 0.10 s" in ended.err
    assert WHY in ended.err


@pytest.mark.parametrize("few", [2, 8])
def test_shard_of_constant_labels_ends_the_run(
    tiny_world,
    dead: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    few: int,
) -> None:
    monkeypatch.setattr(labeling, "FEW", few)
    arguments = tiny_world.labeling(dead, tmp_path / "store", 2)
    monkeypatch.setattr(sys, "argv", ["pseudo_label", *arguments])
    code, captured = run_entry("pseudo_label", run_labeling), capsys.readouterr()
    if few == 2:
        assert code == 2
        assert "a shard was not written: 2 of 2 labels are constant" in captured.err
        assert not list((tmp_path / "store").glob("*.shard"))
    else:
        assert code == 0, captured.err
        assert "warning: 6 of 6 labels are constant" in captured.out
        assert captured.err.count("2 of 2 labels of a shard are constant") == 3
    assert WHY in captured.out + captured.err
