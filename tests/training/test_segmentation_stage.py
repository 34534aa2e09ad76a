"""stage=segmentation on tiny files: what it learns, logs and scores, and what is refused."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from depthany import evaluate, load_model
from depthany.config.entry import run_entry
from depthany.data.batch import Batch
from depthany.losses.reduce import on_one_rank
from depthany.models.heads.classes import LinearClassesHead
from depthany.models.model import build_model
from depthany.system.distributed import ALONE
from depthany.training.class_model import norm_notes
from depthany.training.stages.segmentation import SegmentationSettings, SegmentationStage

pytestmark = pytest.mark.usefixtures("micro")
NAMES = ("dark", "middle", "sky")


def logged(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_run_names_its_classes(class_run: Path) -> None:
    model = load_model(class_run)
    assert model.quantity.class_names == NAMES
    assert model.quantity.class_colours[2] == (70, 130, 180)
    losses = [line["loss/labeled"] for line in logged(class_run) if "loss/labeled" in line]
    assert losses[0] == pytest.approx(math.log(3), abs=0.1), "logits near 0"
    said = (class_run.parent / "out.txt").read_text()
    assert "the encoder starts from random weights" in said
    assert "pixels of 4 of 4 masks: " in said
    assert "mIoU: mean over the classes that occur in ground truth or prediction" in said


def test_scores_have_the_classes(class_run: Path) -> None:
    scores = json.loads((class_run / "results.json").read_text())["scores"]["segmentation"]["mine"]
    of_classes = [scores[f"iou/{name}"] for name in NAMES if f"iou/{name}" in scores]
    assert scores["miou"] == pytest.approx(sum(of_classes) / len(of_classes))
    assert scores["images"] == 3
    assert [line["val/mine/miou"] for line in logged(class_run) if "val/mine/miou" in line][-1] == scores[
        "miou"
    ]


def test_log_has_overlays_and_confusion(class_run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = next(class_run.rglob("events.out.*")).parent
    log = EventAccumulator(str(events))
    log.Reload()
    titles = " ".join(log.Tags()["images"])
    assert "labeled" in titles
    assert "confusion" in titles


def test_evaluation_equals_validation(
    class_run: Path, tiny_world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"checkpoint={class_run}", "protocol=folder_classes", f"roots.mine={tiny_world.root / 'val'}"]
    words += [f"out={tmp_path / 'out'}", "device=cpu", "threads=1", "pictures=1"]
    monkeypatch.setattr(sys, "argv", ["evaluate", *words])
    assert run_entry("evaluate", evaluate.run, several=evaluate.SEVERAL, aliases=evaluate.ALIASES) == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    (found,) = results["protocols"]["folder_classes"]["scores"].values()
    validated = json.loads((class_run / "results.json").read_text())["scores"]["segmentation"]["mine"]
    assert found["mean"]["miou"] == pytest.approx(validated["miou"], abs=1e-6)
    assert [each["name"] for each in found["classes"]] == list(NAMES)
    assert sum(map(sum, found["confusion"])) == sum((42 - 3) * 56 for _ in range(2)) + (56 - 3) * 42
    assert "others are left out" in found["rule"]
    page = (tmp_path / "out/report.html").read_text()
    assert "confusion matrix" in page
    assert "red where it is wrong" in page


@pytest.mark.parametrize("protocol", ["folder", "folder_classes"])
def test_protocol_of_the_other_kind_is_refused(
    protocol: str,
    class_run: Path,
    teacher_run: Path,
    tiny_world: Any,
    tmp_path: Path,
    capsys: Any,
    monkeypatch,
) -> None:
    checkpoint = class_run if protocol == "folder" else teacher_run
    words = [f"checkpoint={checkpoint}", f"protocol={protocol}", f"roots.mine={tiny_world.root / 'val'}"]
    monkeypatch.setattr(sys, "argv", ["evaluate", *words, f"out={tmp_path}", "folder.depth_scale=1000"])
    if protocol == "folder_classes":
        sys.argv.pop()
    with pytest.raises(SystemExit) as end:
        evaluate.main()
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert f"protocol {protocol} scores" in said


def test_segmentation_model_as_teacher_is_refused(start, tiny_world: Any, class_run: Path, tmp_path) -> None:
    ended = start(tiny_world.settings("student", tmp_path / "run", f"stage.teacher={class_run}"))
    assert ended.code == 2
    assert f"stage.teacher={class_run} predicts 3 classes, expected disparity" in ended.err


REFUSED = {
    "+stage.terms.silog=1": "stage.terms.silog is a loss of metres",
    "model.head.class_names=[a,b,c]": "are not the classes of the labeled sets, dark, middle, sky",
}


@pytest.mark.parametrize("word", REFUSED)
def test_mistake_is_named_before_anything_is_written(
    start, tiny_world: Any, tmp_path: Path, word: str
) -> None:
    ended = start(tiny_world.settings("segmentation", tmp_path / "run", word))
    assert ended.code == 2
    assert REFUSED[word] in ended.err
    assert not (tmp_path / "run").exists()


def test_trained_head_of_another_kind_is_refused(
    start, tiny_world: Any, class_run: Path, tmp_path: Path
) -> None:
    given = load_model(class_run).config["head"]["name"].removeprefix("classes_")
    words = [
        f"head={'linear' if given == 'dpt' else 'dpt'}",
        f"model.init={class_run}",
        "model.init_parts=all",
    ]
    ended = start(tiny_world.settings("segmentation", tmp_path / "run", *words))
    assert ended.code == 2
    assert f"has the head classes_{given}, and classes_" in ended.err
    assert f"choose head={given}, or start a new head: model.init_parts=encoder\n" in ended.err


def test_bad_mask_ends_the_run_in_one_line(start, own_world: Any, tmp_path: Path) -> None:
    Image.new("L", (56, 42), 9).save(own_world.root / "labeled/masks/room_0.png")
    ended = start(own_world.settings("segmentation", tmp_path / "run"))
    assert ended.code == 2
    assert "room_0.png: the value 9 belongs to no class" in ended.err
    skipping = start(own_world.settings("segmentation", tmp_path / "other", "data.unreadable=skip", "steps=2",
                                        "data.max_unreadable_share=0.5"))  # fmt: skip
    assert skipping.code == 0, skipping.err
    assert "unreadable mask" in (tmp_path / "other/unreadable.txt").read_text()


def test_frozen_encoder_keeps_its_weights(start, tiny_world: Any, teacher_run: Path, tmp_path: Path) -> None:
    words = ["head=linear", f"model.init={teacher_run}", "model.init_parts=encoder", "model.freeze=encoder"]
    ended = start(tiny_world.settings("segmentation", tmp_path / "run", *words, "steps=2", "eval_every=0"))
    assert ended.code == 0, ended.err
    ours, theirs = load_model(tmp_path / "run"), load_model(teacher_run)
    assert ours.config["head"]["name"] == "classes_linear"
    for name, tensor in theirs.encoder.state_dict().items():
        assert torch.equal(tensor, ours.encoder.state_dict()[name]), name


def stage_and_batch(images: int, mask: bool, **settings: Any) -> tuple[SegmentationStage, Any, Batch]:
    torch.manual_seed(0)
    head = {"name": "classes_linear", "class_names": list(NAMES)}
    model = build_model({"name": "dinov2", "size": "micro"}, {"name": "levels"}, head, 28).train()
    chosen = SegmentationSettings(name="segmentation", terms={"cross_entropy": 1.0}, **settings)
    image = torch.randint(0, 255, (images, 3, 28, 28), dtype=torch.uint8)
    known = torch.full((images, 28, 28), mask)
    batch = Batch(image, torch.zeros(images, 28, 28, dtype=torch.int64), known, image[:0])
    return SegmentationStage(chosen, {}, on_one_rank), model, batch


def test_stage_fits_one_batch() -> None:
    stage, model, batch = stage_and_batch(3, mask=True)
    numbers = torch.arange(3)
    batch.target[:] = numbers[:, None, None]
    batch.labeled_image[:] = (100 * numbers)[:, None, None, None].to(torch.uint8)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(25):
        output = stage(model, batch, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert output.loss < 0.3
    assert output.scalars["train/pixel_accuracy"] == 1


def test_crops_of_255_alone_cost_nothing() -> None:
    stage, model, batch = stage_and_batch(2, mask=False)
    output = stage(model, batch, torch.Generator().manual_seed(0))
    output.loss.backward()
    assert output.loss == 0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_frozen_batch_norm_keeps_its_statistics() -> None:
    for kind, moves in (("trained", True), ("frozen", False)):
        stage, model, batch = stage_and_batch(2, mask=True, batch_norm=kind)
        stage(model, batch, torch.Generator().manual_seed(0))
        assert bool(model.head.norm.running_mean.any()) == moves
        assert model.head.norm.training


def test_small_batch_of_pooling_head_uses_running_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LinearClassesHead, "least_images", 2)
    stage, model, batch = stage_and_batch(1, mask=True)
    output = stage(model, batch, torch.Generator().manual_seed(0))
    assert torch.isfinite(output.loss)
    assert not model.head.norm.running_mean.any()


@pytest.mark.parametrize("parts", [("dpt", "classes_dpt"), ("levels", "classes_linear")])
def test_few_images_for_a_trained_cnn_are_warned_of(parts: tuple[str, str]) -> None:
    head = {"name": parts[1], "class_names": NAMES}
    model = build_model({"name": "atrous", "model": "mobilenetv2_035"}, {"name": parts[0]}, head, 65).train()
    stage = SimpleNamespace(name="segmentation", batch_norm="trained")
    settings: Any = SimpleNamespace(stage=stage, batch_size=2, accumulate=1)
    (line,) = norm_notes(settings, model, ALONE)
    assert "statistics over 2 images at a time; with fewer than 8" in line
    model.freeze(["encoder"])
    assert norm_notes(settings, model.train(), ALONE) == []


def test_one_image_per_batch_norm_is_refused(
    start, tiny_world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LinearClassesHead, "least_images", 2)
    words = ["head=linear", "batch_size=1"]
    ended = start(tiny_world.settings("segmentation", tmp_path / "run", *words))
    assert ended.code == 2
    assert "batch_size=1 gives BatchNorm 1 image at a time, but after a global pooling the head" in ended.err
