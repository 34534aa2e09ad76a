"""Encoder weights from files as they circulate: official names, wrappers, half precision, other grids."""

import dataclasses
import logging
import random
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from depthany.models import dinov2 as encoder_module
from depthany.models.dinov2 import SIZES, Dinov2, resize_pos_embed
from depthany.models.files.weights import load_encoder_weights, read_tensors

GIANT = SIZES["vitg"]


@pytest.fixture
def narrow_giant(monkeypatch: pytest.MonkeyPatch) -> Dinov2:
    """A vitg with its SwiGLU and 40 blocks, but 96 wide."""
    narrow = dataclasses.replace(GIANT, embed_dim=96, heads=3, image_size=42)
    monkeypatch.setitem(encoder_module.SIZES, "vitg", narrow)
    return Dinov2("vitg")


@pytest.fixture(scope="module")
def source() -> Dinov2:
    torch.manual_seed(0)
    return Dinov2("vitt").eval()


def tokens(encoder: Dinov2) -> Tensor:
    with torch.no_grad():
        return encoder.eval()(torch.ones(1, 3, 126, 126))[-1]


def fresh() -> Dinov2:
    torch.manual_seed(1)
    return Dinov2("vitt")


def test_official_file_loads_without_its_mask_token(source: Dinov2, tmp_path: Path) -> None:
    path = tmp_path / "dinov2.pth"
    torch.save({"mask_token": torch.zeros(1, 192), **source.state_dict()}, path)
    encoder = fresh()
    assert not torch.equal(tokens(encoder), tokens(source))
    load_encoder_weights(encoder, path)
    assert torch.equal(tokens(encoder), tokens(source))


def test_half_precision_safetensors_become_float32(source: Dinov2, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    save_file({name: tensor.half() for name, tensor in source.state_dict().items()}, path)
    encoder = fresh()
    load_encoder_weights(encoder, path)
    assert encoder.pos_embed.dtype == torch.float32
    assert torch.equal(encoder.norm.bias, source.norm.bias.half().float())
    assert F.cosine_similarity(tokens(encoder), tokens(source), dim=-1).min() > 0.9999


@pytest.mark.parametrize(
    ("wrapper", "prefix"),
    [
        ("model", ""),
        ("state_dict", "module."),
        ("teacher", "backbone."),
        (None, "pretrained."),
        ("model", "encoder."),
    ],
)
def test_known_wrappers_and_prefixes_are_removed(
    source: Dinov2, tmp_path: Path, wrapper: str | None, prefix: str
) -> None:
    state = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    if prefix:
        state["decoder.conv1.weight"] = torch.zeros(1)  # another part of the same network
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "a.pth")
    encoder = fresh()
    load_encoder_weights(encoder, tmp_path / "a.pth")
    assert torch.equal(encoder.norm.weight, source.norm.weight)
    assert torch.equal(encoder.pos_embed, source.pos_embed)


def test_giants_swiglu_gates_with_its_first_half(narrow_giant: Dinov2, tmp_path: Path) -> None:
    official = {
        name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): tensor
        for name, tensor in narrow_giant.state_dict().items()
    }
    torch.save(official, tmp_path / "g.pth")
    loaded = Dinov2("vitg")
    load_encoder_weights(loaded, tmp_path / "g.pth")
    w12, w3 = (official[f"blocks.3.mlp.{name}.weight"] for name in ("w12", "w3"))
    b12, b3 = (official[f"blocks.3.mlp.{name}.bias"] for name in ("w12", "w3"))
    x = torch.randn(5, 96)
    gate, value = F.linear(x, w12, b12).chunk(2, -1)
    torch.testing.assert_close(loaded.blocks[3].mlp(x), F.linear(F.silu(gate) * value, w3, b3))


def test_giant_has_the_released_hidden_width() -> None:
    with torch.device("meta"):
        vit = encoder_module.build_vit(GIANT)
    assert vit.blocks[0].mlp.fc1.weight.shape == (2 * 4096, 1536)


def test_positions_of_another_grid_are_resampled(
    source: Dinov2, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = source.state_dict()
    wide = resize_pos_embed(state["pos_embed"], 16, 16, "size")
    torch.save({**state, "pos_embed": wide}, tmp_path / "wide.pth")
    encoder = fresh()
    with caplog.at_level(logging.INFO):
        load_encoder_weights(encoder, tmp_path / "wide.pth")
    assert "resampled from 16 x 16 to 9 x 9" in caplog.text
    torch.testing.assert_close(encoder.pos_embed, resize_pos_embed(wide, 9, 9, "size"))


def test_weights_of_another_size_are_named(narrow_giant: Dinov2, source: Dinov2, tmp_path: Path) -> None:
    torch.save(source.state_dict(), tmp_path / "t.pth")
    with pytest.raises(ValueError, match=r"192 wide and seems to be vitt; vitg is 96 wide"):
        load_encoder_weights(narrow_giant, tmp_path / "t.pth")


def test_a_missing_block_is_named(source: Dinov2, tmp_path: Path) -> None:
    state = {name: t for name, t in source.state_dict().items() if not name.startswith("blocks.11.")}
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(
        ValueError, match=r"short.pth does not fit Dinov2; 14 missing: blocks.11.norm1.weight"
    ):
        load_encoder_weights(fresh(), tmp_path / "short.pth")


def test_file_without_encoder_lists_its_entries(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"0 `cls_token`s.*conv1.weight, fc.bias"):
        load_encoder_weights(fresh(), tmp_path / "resnet.pth")


def test_dinov2_with_registers_is_refused(source: Dinov2, tmp_path: Path) -> None:
    torch.save({**source.state_dict(), "register_tokens": torch.zeros(1, 4, 192)}, tmp_path / "reg.pth")
    with pytest.raises(ValueError, match="with registers"):
        load_encoder_weights(fresh(), tmp_path / "reg.pth")


def test_the_sample_encoder_has_nothing_to_download() -> None:
    with pytest.raises(ValueError, match=r"vitt has no published weights; pass a local file"):
        load_encoder_weights(Dinov2("vitt"), None)


def test_offline_download_names_the_local_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    with pytest.raises(RuntimeError) as failure:
        load_encoder_weights(Dinov2("vits"), None)
    assert "\n" not in str(failure.value)
    assert "could not download the weights of vits" in str(failure.value)
    assert "model.weights=/path/to/dinov2_vits14_pretrain.pth" in str(failure.value)


def test_an_unreachable_host_is_found_out_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError, match="ConnectionRefusedError"):
        load_encoder_weights(Dinov2("vits"), None)


def test_git_lfs_pointer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dinov2_vits14_pretrain.pth"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 88283115\n")
    with pytest.raises(ValueError, match="damaged or could run code"):
        load_encoder_weights(fresh(), path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", ["new.pth", "old.pth", "a.safetensors"])
def test_damaged_file_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    state = {"cls_token": torch.zeros(1, 1, 8), "norm.bias": torch.zeros(5)}
    path = tmp_path / name
    if name.endswith("safetensors"):
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=name == "new.pth")
    whole, draw, messages = path.read_bytes(), random.Random(0), []
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            read_tensors(path)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all(message.startswith(str(path)) and "\n" not in message for message in messages)
