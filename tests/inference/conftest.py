"""Tiny models on disk, and `python -m depthany.predict` in this process."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from depthany import predict as entry
from depthany.models.model import DenseModel, depth_anything, save_model


@dataclass
class Ended:
    code: int
    out: str
    err: str


Predict = Callable[..., Ended]


def random_model(encoder: str, max_depth: float | None = None) -> DenseModel:
    torch.manual_seed(0)
    return depth_anything(encoder, max_depth_m=max_depth, input_size=28).eval()


@pytest.fixture
def model(micro: str) -> DenseModel:
    """Disparity, with random weights."""
    return random_model(micro)


@pytest.fixture
def metric_model(micro: str) -> DenseModel:
    """Metres, up to 80, with random weights."""
    return random_model(micro, 80.0)


@pytest.fixture
def checkpoint(model: DenseModel, tmp_path: Path) -> Path:
    save_model(model, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def metric_checkpoint(metric_model: DenseModel, tmp_path: Path) -> Path:
    save_model(metric_model, tmp_path / "metric")
    return tmp_path / "metric"


@contextmanager
def interrupted_at(batch: int) -> Iterator[list[int]]:
    """Sends SIGINT after forward pass number `batch` (from 1); the list grows by one item per pass."""
    calls: list[int] = []

    def interrupt(module: torch.nn.Module, *_: object) -> None:
        if isinstance(module, DenseModel):
            calls.append(1)
            if len(calls) == batch:
                signal.raise_signal(signal.SIGINT)

    hook = torch.nn.modules.module.register_module_forward_hook(interrupt)
    try:
        yield calls
    finally:
        hook.remove()


@pytest.fixture
def ctrl_c_at_batch() -> Callable[[int], AbstractContextManager[list[int]]]:
    return interrupted_at


@pytest.fixture
def predict(
    checkpoint: Path,
    ctrl_c_works: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Predict:
    """`python -m depthany.predict` in this process, with the model of `checkpoint`, into tmp_path / "out"."""

    def start(*words: str) -> Ended:
        given = {word.partition("=")[0] for word in words}
        own = [f"checkpoint={checkpoint}", f"out={tmp_path / 'out'}", "device=cpu", "threads=1"]
        words = (*words, *(word for word in own if word.partition("=")[0] not in given))
        monkeypatch.setattr(sys, "argv", ["predict", *words])
        with pytest.raises(SystemExit) as end:
            entry.main()
        captured = capsys.readouterr()
        return Ended(int(end.value.code or 0), captured.out, captured.err)

    return start
