"""Depth model: published sizes, one pass for depth and features, files that rebuild it exactly."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from depthany.models.encoder import patch_tokens
from depthany.models.files.loading import load_model
from depthany.models.model import DenseModel, build_model, depth_anything, save_model
from depthany.models.preprocess import Preprocessing


@pytest.fixture(scope="module")
def model() -> DenseModel:
    torch.manual_seed(0)
    return depth_anything("vitt", taps="v2").eval()


@pytest.fixture
def saved(model: DenseModel, tmp_path: Path) -> Path:
    save_model(model, tmp_path / "run", {"trained_on": "nothing"})
    return tmp_path / "run"


def images(h: int = 70, w: int = 98, b: int = 2) -> Tensor:
    return torch.randn(b, 3, h, w, generator=torch.Generator().manual_seed(1))


def predict(net: DenseModel) -> Tensor:
    with torch.no_grad():
        return net(images()).map


@pytest.mark.parametrize(
    ("encoder", "published"), [("vits", 24.8e6), ("vitb", 97.5e6), ("vitl", 335.3e6), ("vitg", 1.3e9)]
)
def test_parameter_counts_are_the_published_ones(encoder: str, published: float) -> None:
    with torch.device("meta"):
        net = depth_anything(encoder)
    features = net.encoder.spec.dpt_features
    unused_unit = 2 * (9 * features * features + features)  # of the released coarsest fusion, not here
    mask_token = net.encoder.spec.embed_dim
    count = sum(p.numel() for p in net.parameters()) + unused_unit + mask_token
    assert count == pytest.approx(published, rel=4e-2 if encoder == "vitg" else 2e-3)  # vitg: 2 digits


def test_the_sample_model_stays_small() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in depth_anything("vitt").encoder.parameters()) < 6e6


def test_disparity_has_image_size_and_no_negatives(model: DenseModel) -> None:
    disparity = predict(model)
    assert disparity.shape == (2, 70, 98)
    assert disparity.dtype == torch.float32
    assert disparity.min() >= 0


def test_features_are_final_tokens_of_the_pass(model: DenseModel) -> None:
    passes = []
    handle = model.encoder.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        disparity, tokens, _ = model(images(), with_features=True)
    handle.remove()
    assert len(passes) == 1
    assert tokens.shape == (2, 5 * 7, 192)
    with torch.no_grad():
        assert torch.equal(tokens, patch_tokens(model.encoder(images())[-1]))
    assert torch.equal(disparity, predict(model))


def test_bfloat16_changes_disparity_by_little(model: DenseModel) -> None:
    exact = predict(model)
    with torch.autocast("cpu", torch.bfloat16):
        rough = predict(model)
    assert rough.dtype == torch.float32
    spread = (exact - exact.median()).abs().mean()
    assert (rough - exact).abs().mean() < 0.1 * spread


def test_channels_last_gives_the_same_disparity(model: DenseModel) -> None:
    net = build_model(**model.config).to(memory_format=torch.channels_last)
    net.load_state_dict(model.state_dict())
    torch.testing.assert_close(predict(net), predict(model))


def test_names_of_the_weights_start_with_their_part(model: DenseModel) -> None:
    names = model.state_dict().keys()
    assert {name.split(".")[0] for name in names} == {"encoder", "decoder", "head"}
    assert "encoder.blocks.0.attn.qkv.weight" in names


def test_normalise_leaves_the_image_it_was_given_alone() -> None:
    image = torch.full((1, 3, 2, 2), 100.0)
    Preprocessing().normalise(image)
    assert image.eq(100).all()


def test_normalise_maps_the_imagenet_mean_to_zero() -> None:
    image = torch.tensor([0.485, 0.456, 0.406]).mul(255).round().to(torch.uint8).view(1, 3, 1, 1)
    assert Preprocessing().normalise(image).abs().max() < 0.01
    white = Preprocessing().normalise(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten()
    assert white.tolist() == pytest.approx([0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225])


def test_a_saved_model_comes_back_bit_for_bit(model: DenseModel, saved: Path) -> None:
    for source in (saved, saved / "model.safetensors"):
        loaded = load_model(source)
        assert not loaded.training
        assert loaded.config == model.config
        assert torch.equal(predict(loaded), predict(model))
    assert all(p.requires_grad for p in loaded.parameters())
    assert json.loads((saved / "config.json").read_text())["trained_on"] == "nothing"
    assert sorted(os.listdir(saved)) == ["config.json", "model.safetensors"]


def test_channels_last_weights_are_saved_in_plain_order(model: DenseModel, tmp_path: Path) -> None:
    net = build_model(**model.config).to(memory_format=torch.channels_last)
    save_model(net, tmp_path)
    assert torch.equal(predict(load_model(tmp_path)), predict(net.to(memory_format=torch.contiguous_format)))


def test_a_training_checkpoint_loads_too(model: DenseModel, tmp_path: Path) -> None:
    path = tmp_path / "step_10.pt"
    torch.save({"model": model.state_dict(), "model_config": model.config, "step": 10}, path)
    assert torch.equal(predict(load_model(path)), predict(model))


def test_an_unfinished_run_names_its_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_10.pt").touch()
    with pytest.raises(FileNotFoundError, match=r"not finished.*step_10\.pt"):
        load_model(tmp_path)


def test_an_empty_or_absent_source_is_explained(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor"):
        load_model(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_model(tmp_path / "absent")


def test_a_truncated_file_is_explained_in_one_line(saved: Path, tmp_path: Path) -> None:
    whole = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a whole safetensors file") as failure:
        load_model(saved)
    assert "\n" not in str(failure.value)
    torch.save({"model": {"x": torch.zeros(1000)}}, tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:2000])
    with pytest.raises(ValueError, match="not a whole torch file") as failure:
        load_model(tmp_path / "a.pt")
    assert "\n" not in str(failure.value)


class Payload:
    """Unpickling this creates a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_checkpoint_with_code_is_refused(tmp_path: Path) -> None:
    path, trace = tmp_path / "bad.pt", tmp_path / "trace"
    torch.save({"model": {}, "model_config": Payload(trace)}, path)
    with pytest.raises(ValueError, match="could run code"):
        load_model(path)
    path.write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(ValueError, match="could run code"):
        load_model(path)
    assert not trace.exists()


def test_weights_that_do_not_fit_are_listed(saved: Path) -> None:
    state = load_file(saved / "model.safetensors")
    state["head.conv9.bias"] = state.pop("head.conv3.bias")
    state["head.conv1.bias"] = torch.zeros(3)
    for index in range(12):
        del state[f"encoder.blocks.{index}.ls1.gamma"]
    save_file(state, saved / "model.safetensors")
    with pytest.raises(ValueError) as failure:
        load_model(saved)
    message = str(failure.value)
    assert "13 missing: encoder.blocks.0.ls1.gamma, " in message
    assert "encoder.blocks.9.ls1.gamma ...; 1 left over: head.conv9.bias" in message
    assert "1 other shape: head.conv1.bias (3,) for (16,)" in message


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"model_type": "resnet"}', "is not a depthany model"),
        ('{"format": "depthany", "version": 99, "model": {}}', "version 99.*update depthany"),
        ('{"format": "depthany", "version": 1, "model": {"width": 3}}', "settings .*width.* are not known"),
        ('{"format"', "is not JSON"),
    ],
)
def test_a_foreign_config_is_explained(saved: Path, config: str, message: str) -> None:
    (saved / "config.json").write_text(config)
    with pytest.raises(ValueError, match=message):
        load_model(saved)


def test_weights_without_their_config_are_explained(saved: Path) -> None:
    (saved / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        load_model(saved)


def test_a_failed_save_leaves_the_old_file(
    model: DenseModel, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (saved / "model.safetensors").read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ValueError, match="disk full"):
        save_model(model, saved)
    assert (saved / "model.safetensors").read_bytes() == before
    assert sorted(os.listdir(saved)) == ["config.json", "model.safetensors"]
