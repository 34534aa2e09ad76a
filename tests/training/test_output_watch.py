"""Training that has died: outputs that are constant or explode, and images that do not count in the loss."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from depthany.losses.affine_invariant import affine_invariant_loss
from depthany.models.heads.relative import RelativeHead
from depthany.system.distributed import Processes
from depthany.training.loop import mean_score
from depthany.training.meter import Meter
from depthany.training.output_watch import OutputWatch, faults_of, says_something, without_empty_losses
from depthany.training.stages.base import StageImages, StageOutput

RAMP = torch.linspace(0, 1, 12).reshape(1, 3, 4)
HEALTHY = {"output/min": 0.0, "output/max": 9.0, "output/constant": 0.0, "output/counted_labeled": 1.0}


def shown(prediction: Tensor, target: Tensor = RAMP, mask: Tensor | None = None) -> StageImages:
    target = target.expand_as(prediction)
    picture = torch.zeros(len(prediction), 3, 3, 4, dtype=torch.uint8)
    mask = torch.ones_like(prediction, dtype=torch.bool) if mask is None else mask
    return StageImages(picture, picture, target, mask, prediction)


def test_range_spread_and_counts_by_hand() -> None:
    watch = OutputWatch()
    watch.add({"labeled": shown(torch.cat([RAMP, 4 * RAMP, torch.full_like(RAMP, 5.0)]))})
    watch.add({"labeled": shown(-RAMP, torch.zeros_like(RAMP)), "unlabeled": shown(RAMP[:0])})
    assert watch.read() == {
        "output/min": -1.0,
        "output/max": 5.0,
        "output/spread": (1 + 4 + 0 + 1) / 4,
        "output/constant": 1 / 4,
        "output/counted_labeled": 3 / 4,
    }
    watch.restart()
    assert watch.read() == {}


class Twice(Processes):
    """Two processes that hold the same."""

    def gather(self, value):
        return [value, value]


def test_ranks_are_watched_together() -> None:
    alone, two = OutputWatch(), OutputWatch(Twice(size=2))
    for watch in (alone, two):
        watch.add({"labeled": shown(torch.cat([RAMP, 4 * RAMP]))})
    assert two.read() == alone.read()


@pytest.mark.parametrize("value", [0.0, 1.0, 3e4, 2e35])
def test_rounding_is_no_spread(value: float) -> None:
    watch = OutputWatch()
    watch.add({"labeled": shown(value * (1 + 3e-7 * RAMP))})
    assert watch.read()["output/constant"] == 1


@pytest.mark.parametrize("pixels, counts", [(0, False), (1, False), (2, True), (12, True)])
def test_images_that_count_are_those_of_the_loss(pixels: int, counts: bool) -> None:
    mask = (torch.arange(12) < pixels).reshape(1, 3, 4)
    for target, expected in ((RAMP, counts), (torch.full_like(RAMP, 0.5), False)):
        assert says_something(target, mask, is_relative=True).tolist() == [expected]
        assert (affine_invariant_loss(-RAMP, target, mask) > 0).tolist() is expected
    assert says_something(torch.full_like(RAMP, 5.0), mask, is_relative=False).tolist() == [pixels > 0]


@pytest.mark.parametrize(
    "change, fault",
    [
        ({}, None),
        ({"output/constant": 0.4}, None),
        ({"output/constant": 0.6}, "constant"),
        ({"output/constant": 1.0, "output/zeros": 1.0}, "zeros"),
        ({"output/max": 2e35}, "exploded"),
        ({"output/min": -2e6}, "exploded"),
        ({"output/max": float("nan")}, "exploded"),
        ({"output/max": 1e5}, None),
        ({"output/counted_labeled": 0.4}, "output/counted_labeled"),
    ],
)
def test_faults(change: dict[str, float], fault: str | None) -> None:
    assert list(faults_of(HEALTHY | change)) == ([] if fault is None else [fault])


def test_loss_of_no_image_is_not_reported_as_0() -> None:
    meter = Meter()
    flat = shown(RAMP, torch.zeros_like(RAMP))
    loss = affine_invariant_loss(flat.prediction, flat.target, flat.mask)
    meter.add(StageOutput(loss, {"loss/labeled": loss}, {"labeled": flat}), images=1, micro_batches=1)
    means = meter.means()
    assert not any(name.startswith("loss/") for name in means)
    assert means["output/counted_labeled"] == 0
    of_two_kinds = {"loss/total": 1.0, "loss/labeled": 0.0, "loss/unlabeled": 2.0, "loss/unlabeled/a": 1.0}
    counted = {"output/counted_labeled": 0.0, "output/counted_unlabeled": 0.5}
    assert without_empty_losses(of_two_kinds | counted).keys() == {
        *("loss/total", "loss/unlabeled", "loss/unlabeled/a"),
        *counted,
    }


def test_exploding_run_is_warned_of_and_named_at_its_end(start, tiny_world, tmp_path: Path) -> None:
    ended = start(tiny_world.settings("teacher", tmp_path / "run", "optimizer.lr=1"))
    assert ended.code == 0, ended.err
    assert (
        ended.out.count("exploding output: the predicted values reach from") == 2
    )  # as it began, at the end
    assert "warning: as training ended: exploding output" in ended.out
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines[-2]["output/max"] > 1e15


def test_healthy_run_warns_of_nothing(student_run: Path) -> None:
    assert "output" not in (student_run.parent / "out.txt").read_text()


def dead(images: float = 3.0, constant: float = 3.0) -> dict[str, dict[str, float]]:
    return {"mine": {"abs_rel": 0.1, "images": images, "constant_predictions": constant}}


def test_dead_model_is_never_the_best() -> None:
    assert np.isnan(mean_score(dead(), "abs_rel") or 0.0)
    assert mean_score(dead(constant=2.0), "abs_rel") == 0.1


def test_dead_run_is_named_in_the_table(start, tiny_world, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(RelativeHead, "activate", lambda self, last: torch.relu(last - 1e3))
    ended = start(tiny_world.settings("teacher", tmp_path / "run", "steps=2", "eval_every=1"))
    assert ended.code == 0, ended.err
    assert (
        ended.out.count("warning: at step 1: dead output ReLU: 100% of the predicted pixels are exactly 0")
        == 1
    )
    assert re.search(r"│ +0 of 3 │ +3 of 3 │", ended.out), "negative scales, constant predictions"
    assert "warning: dead model: teacher predicts a constant for every image of mine" in ended.out
    assert "warning: as training ended: dead output ReLU" in ended.out
    assert not (tmp_path / "run/checkpoints/best.pt").exists()
    scores = json.loads((tmp_path / "run/results.json").read_text())["scores"]["teacher"]["mine"]
    assert scores["constant_predictions"] == 3
    assert scores["abs_rel"] > 0.05


def write_flat(labeled: Path, names: list[str], pixels: int) -> None:
    for name in names:
        path = labeled / "depth" / f"{name}.png"
        with Image.open(path) as before:
            depth_mm = np.zeros((before.height, before.width), np.uint16)
        depth_mm.flat[:pixels] = 3000
        Image.fromarray(depth_mm).save(path)


@pytest.mark.parametrize("pixels", [1, 500])
def test_flat_labels_do_not_count(start, own_world, tmp_path: Path, pixels: int) -> None:
    labeled = own_world.root / "labeled"
    write_flat(labeled, ["room_1"], pixels)
    ended = start(own_world.settings("teacher", tmp_path / "one"))
    assert ended.code == 0, ended.err
    assert "1 labeled images were left out (1 flat depth)" in ended.out
    assert str(labeled / "depth/room_1.png") in (tmp_path / "one/unreadable.txt").read_text()
    write_flat(labeled, ["room_0", "room_2", "room_3"], pixels)
    ended = start(own_world.settings("teacher", tmp_path / "all"))
    assert ended.code == 2
    assert "12 of 12 labeled images were left out, more than data.max_unreadable_share" in ended.err
    assert "12 flat depth" in ended.err
