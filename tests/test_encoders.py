"""Encoders beyond DINOv2, end to end: two steps from random weights, resume, predict, export."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from depthany import load_model
from depthany.config.entry import run_entry
from depthany.export import run as export
from depthany.predict import run as predict

CROPS = {"vit_small_patch16_dinov3": 48, "convnext_atto": 64, "resnet18": 64}  # pixels
TAPS = {"vit_small_patch16_dinov3": ["model.encoder.taps=[0,1,2,3]"]}  # the first four blocks, of twelve
pytestmark = pytest.mark.parametrize("encoder", CROPS)


def settings(world, encoder: str, run_dir: Path, *more: str) -> list[str]:
    inherited = [word for word in world.settings("teacher", run_dir) if not word.startswith("model")]
    return [
        *inherited,
        *("model=timm", f"model.encoder.model={encoder}", "model.pretrained=false"),
        *(f"crop_size={CROPS[encoder]}", "steps=2", "batch_size=2", "save_every=1", "eval_every=0"),
        *("optimizer.lr=1e-4", *TAPS.get(encoder, []), *more),
    ]


@pytest.fixture(scope="module")
def trained(tiny_world, start: Callable, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the folder of a finished run of two steps with an encoder; not to be written to."""
    folders: dict[str, Path] = {}

    def train(encoder: str) -> Path:
        if encoder not in folders:
            run_dir = tmp_path_factory.mktemp("runs") / encoder
            ended = start(settings(tiny_world, encoder, run_dir))
            assert ended.code == 0, ended.err
            folders[encoder] = run_dir
        return folders[encoder]

    return train


def command(monkeypatch: pytest.MonkeyPatch, name: str, job: Callable, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", [name, *words])
    return run_entry(name, job)


def test_training_moves_encoder_and_decoder(trained: Callable, encoder: str) -> None:
    states = [
        torch.load(path, weights_only=True)["model"]
        for path in sorted((trained(encoder) / "checkpoints").glob("step_*.pt"))
    ]
    assert len(states) == 2
    moved = {
        name.split(".")[0] for name, tensor in states[0].items() if not torch.equal(tensor, states[1][name])
    }
    assert moved == {"encoder", "decoder", "head"}


def test_resumed_run_ends_with_equal_weights(
    trained: Callable, encoder: str, tiny_world, tmp_path: Path, start: Callable
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(trained(encoder), run_dir)
    (run_dir / "model.safetensors").unlink()
    (run_dir / "checkpoints" / "step_00000002.pt").unlink()
    ended = start(settings(tiny_world, encoder, run_dir))
    assert ended.code == 0, ended.err
    assert "continuing at step 1 of 2" in ended.out
    first, second = (load_file(folder / "model.safetensors") for folder in (trained(encoder), run_dir))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_trained_model_predicts_photos(
    trained: Callable, encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    words = [f"checkpoint={trained(encoder)}", f"images={tmp_path / 'photo.png'}", f"out={tmp_path / 'out'}"]
    words += ["save=npy", "device=cpu", "precision=fp32", "threads=1"]
    assert command(monkeypatch, "predict", predict, *words) == 0
    disparity = np.load(tmp_path / "out" / "photo.npy")
    assert disparity.shape == (70, 90)
    np.testing.assert_allclose(disparity, load_model(trained(encoder)).infer(photo), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_onnx_graph_computes_the_models_maps(
    trained: Callable, encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model.onnx"
    assert (
        command(monkeypatch, "export", export, f"checkpoint={trained(encoder)}", "format=onnx", f"out={out}")
        == 0
    )
    assert out.is_file()  # kept only if onnxruntime agrees at three sizes
