"""Adds a stage, a head, a loss, an encoder, a metric, a logger and a data set from here, and trains them."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from depthany import load_model
from depthany.config.entry import run_entry
from depthany.data.batch import Batch
from depthany.data.samples import LabeledSample
from depthany.data.targets import Labels
from depthany.evaluate import ALIASES, SEVERAL
from depthany.evaluate import run as evaluate
from depthany.losses.table import LOSSES, weighted_terms
from depthany.metrics.table import METRICS, Metric
from depthany.models.dpt import Pyramid
from depthany.models.encoder import Encoder
from depthany.models.heads.head import Head
from depthany.models.output import Prediction, Quantity
from depthany.models.preprocess import Preprocessing
from depthany.models.tables import ENCODERS, HEADS
from depthany.training.loggers.logger import Logger, LogPlace
from depthany.training.loggers.table import LOGGERS
from depthany.training.stages.base import (
    Needs,
    Stage,
    StageContext,
    StageImages,
    StageOutput,
    TermsSettings,
    at_least_one,
)
from depthany.training.stages.table import STAGES

SIZE = 64  # pixels of the crops: two cells of the coarsest level


class TinyCnn(Encoder):
    """Four strided convolutions: levels at 4, 8, 16 and 32 pixels per cell."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.config, self.label = {"width": width}, f"tiny{width}"
        self.widths, self.strides = (width, 2 * width, 4 * width, 8 * width), (4, 8, 16, 32)
        self.dpt_widths = 8, self.widths
        self.preprocessing = Preprocessing(32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        inputs, steps = (3, *self.widths[:3]), (4, 2, 2, 2)
        self.blocks = nn.ModuleList(
            nn.Conv2d(c, out, step, stride=step) for c, out, step in zip(inputs, self.widths, steps)
        )
        self.activation_checkpointing = False

    def forward(self, image: Tensor) -> list[Tensor]:
        levels = []
        for block in self.blocks:
            image = torch.relu(block(image))
            levels.append(image)
        return levels


class ExponentialHead(Head):
    """Unbounded depth in metres: the exponential of one convolution."""

    quantity = Quantity("depth_m")

    def __init__(self, features: int) -> None:
        super().__init__()
        self.config = {}
        self.conv = nn.Conv2d(features, 1, 3, padding=1)

    def forward(self, pyramid: Pyramid, size: tuple[int, int]) -> Prediction:
        log_depth = nn.functional.interpolate(self.conv(pyramid.fused[0]), size, mode="bilinear")
        return Prediction(log_depth.squeeze(1).float().exp(), extra={"log_depth": log_depth})


def log_l1(prediction: Tensor, target: Tensor, mask: Tensor, *, mean_over_ranks: Callable) -> Tensor:
    """Mean |ln prediction - ln target| over the valid pixels."""
    error = (prediction.log() - torch.where(mask, target, 1).log()).abs()
    return torch.where(mask, error, 0).sum() / mean_over_ranks(mask.sum()).clamp(min=1)


@dataclass
class MetricStageSettings(TermsSettings):
    """The settings of `MetricStage`."""


class MetricStage(Stage):
    """Learns metres from labeled images; the best checkpoint has the lowest mean absolute error."""

    Settings, needs = MetricStageSettings, Needs(labeled=True)
    target, predicts, primary = "depth_m", "depth_m", "mae"

    def __init__(self, terms: Mapping[str, float], context: StageContext) -> None:
        super().__init__()
        self.terms, self.mean_over_ranks = dict(terms), context.mean_over_ranks

    @classmethod
    def build(cls, settings: MetricStageSettings, context: StageContext) -> "MetricStage":
        return cls(settings.terms, context)

    def forward(self, model: Any, batch: Batch, generator: torch.Generator) -> StageOutput:
        image = model.preprocessing.normalise(at_least_one(batch.labeled_image))
        depth_m = model(image).map[: len(batch.labeled_image)]
        loss, _ = weighted_terms(
            self.terms, depth_m, batch.target, batch.mask, mean_over_ranks=self.mean_over_ranks
        )
        seen = batch.labeled_image
        images = StageImages(seen, seen, batch.target, batch.mask, depth_m.detach())
        return StageOutput(loss, {"loss/labeled": loss}, {"labeled": images})


class Slopes:
    """Eight images, brighter where the ground is farther: 1 to 5 m."""

    unit, min_depth, max_depth = "m", 0.1, 10.0

    def __init__(self, root: str, count: int = 8) -> None:
        self.root, self.count = root, count

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"slope_{index}"

    def files(self, index: int) -> tuple[str, str]:
        return self.name(index), self.name(index)

    def stored_image(self, index: int) -> np.ndarray:
        ramp = np.linspace(0, 255, 96)[None, :] * np.ones((80, 1)) * (index + 1) / self.count
        return np.repeat(ramp[:, :, None], 3, 2).astype(np.uint8)

    def labels(self, index: int) -> Labels:
        depth_m = 1 + self.stored_image(index)[:, :, 0].astype(np.float32) / 255 * 4
        return Labels(depth_m, "m", np.ones(depth_m.shape, bool))

    def read(self, index: int, convert_images: bool = False) -> LabeledSample:
        return LabeledSample(self.name(index), self.stored_image(index), self.labels(index))


def absolute_errors(depth_pred_m: np.ndarray, depth_m: np.ndarray) -> list[float]:
    return [len(depth_m), np.abs(depth_pred_m - depth_m).sum()]


class MemoryLogger(Logger):
    """Keeps what it is given, by run directory."""

    title, runs = "memory", dict[str, "MemoryLogger"]()

    def __init__(self, place: LogPlace) -> None:
        super().__init__(place)
        self.lines, self.pictures, self.is_closed = list[dict[str, float]](), list[tuple[str, int]](), False
        self.runs[place.run_dir.name] = self

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.lines.append({"step": step, **values})

    def picture(self, title: str, sheet: np.ndarray, step: int) -> None:
        self.pictures.append((title.split(":")[0], step))

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture(scope="module", autouse=True)
def rows() -> Iterator[None]:
    """One row per table, as a plug-in adds them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENCODERS, "tiny_cnn", TinyCnn)
        patch.setitem(HEADS, "exponential", ExponentialHead)
        patch.setitem(LOSSES, "log_l1", log_l1)
        patch.setitem(STAGES, "metres", MetricStage)
        patch.setitem(LOGGERS, "memory", MemoryLogger)
        patch.setitem(METRICS, "mae", Metric("MAE", "lower", absolute_errors))
        yield


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """YAML of the stage, the model and the data, for --config-dir."""
    folder = tmp_path_factory.mktemp("configs")
    files = {
        "stage/metres.yaml": "# @package _global_\nstage:\n  name: metres\n  terms: {log_l1: 1.0}\n",
        "model/tiny.yaml": (
            "encoder: {name: tiny_cnn, width: 4}\ndecoder: {name: dpt}\nhead: {name: exponential}\n"
            "pretrained: false\nweights: null\ninit: null\ninit_parts: all\nfreeze: none\n"
        ),
        "dataset/slopes.yaml": f"_target_: {__name__}.Slopes\nroot: none needed\ncount: 8\n",
        "data/slopes.yaml": (
            "defaults:\n  - /dataset@labeled.slopes: slopes\n  - /dataset@val.slopes: slopes\n"
            "  - /reading@_here_: default\n  - _self_\nunlabeled: {}\n"
        ),
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def command(configs: Path, run_dir: Path, *more: str) -> list[str]:
    return [
        *("--config-dir", str(configs), "stage=metres", "experiment=none", "model=tiny", "data=slopes"),
        *(f"run_dir={run_dir}", "steps=4", "batch_size=4", f"crop_size={SIZE}", "optimizer.lr=1e-3"),
        *("threads=1", "workers=0", "device=cpu", "precision=fp32", "log_every=1", "image_every=2"),
        *("eval_every=2", "save_every=2", "loggers=[jsonl,tensorboard,memory]", *more),
    ]


@pytest.fixture(scope="module")
def trained(configs: Path, tmp_path_factory: pytest.TempPathFactory, start: Callable) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "metres"
    ended = start(command(configs, run_dir))
    assert ended.code == 0, ended.err
    assert "MAE" in ended.out
    return run_dir


def logged(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_added_parts_train_together(trained: Path) -> None:
    model = load_model(trained)
    assert model.quantity == Quantity("depth_m")
    assert model.config["encoder"] == {"name": "tiny_cnn", "width": 4}
    assert model.config["head"] == {"name": "exponential"}
    losses = [line["loss/labeled"] for line in logged(trained) if "loss/labeled" in line]
    assert len(losses) == 4
    assert losses[-1] < losses[0]


def test_own_logger_gets_all_lines(trained: Path) -> None:
    logger = MemoryLogger.runs["metres"]
    assert logger.lines == logged(trained)
    assert [each for each in logger.pictures if each[0] == "crops/labeled"] == [
        ("crops/labeled", 2),
        ("crops/labeled", 4),
    ]
    assert ("examples/slopes", 4) in logger.pictures
    assert logger.is_closed
    assert logger.place.start_step == 0


def test_own_metric_decides_the_best_checkpoint(trained: Path) -> None:
    scores = [line["val/slopes/mae"] for line in logged(trained) if "val/slopes/mae" in line]
    best = torch.load(trained / "checkpoints" / "best.pt", weights_only=True)
    assert len(scores) == 2
    assert min(scores) in best["state"].values()


def test_resumed_run_ends_with_equal_weights(
    trained: Path, configs: Path, tmp_path: Path, start: Callable
) -> None:
    run_dir = tmp_path / "resumed"
    shutil.copytree(trained, run_dir)
    (run_dir / "model.safetensors").unlink()
    (run_dir / "checkpoints" / "step_00000004.pt").unlink()
    ended = start(command(configs, run_dir))
    assert ended.code == 0, ended.err
    assert "continuing at step 2 of 4" in ended.out
    first, second = (load_file(folder / "model.safetensors") for folder in (trained, run_dir))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert MemoryLogger.runs["resumed"].place.start_step == 2


def test_own_metric_is_scored(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    protocol = tmp_path / "slopes.yaml"
    protocol.write_text(
        f"dataset: {{_target_: {__name__}.Slopes, root: {tmp_path}}}\nalign: none\nmax_depth: 10\n"
        "metrics: [mae, abs_rel]\n"
    )
    words = [f"checkpoint={trained}", f"protocol={protocol}", f"out={tmp_path / 'out'}", "device=cpu"]
    monkeypatch.setattr(sys, "argv", ["evaluate", *words, "precision=fp32", "threads=1", "pictures=0"])
    assert run_entry("evaluate", evaluate, several=SEVERAL, aliases=ALIASES) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    found = results["protocols"]["slopes"]["scores"]["metres"]["mean"]
    assert list(found) == ["mae", "abs_rel"]
    validated = json.loads((trained / "results.json").read_text())["scores"]["metres"]["slopes"]
    assert found["mae"] == pytest.approx(validated["mae"], rel=1e-5)


def test_wrong_head_for_the_stage_is_refused(configs: Path, tmp_path: Path, start: Callable) -> None:
    ended = start(command(configs, tmp_path / "run", "model.head.name=relative"))
    assert ended.code == 2
    assert "predicts disparity, expected depth in metres" in ended.err
    assert not (tmp_path / "run").exists()
