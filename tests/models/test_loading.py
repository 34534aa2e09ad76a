"""Checkpoints of others: what is recognised, what is refused, and what a message says."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from depthany import load_model
from depthany.models.dinov2 import SIZES
from depthany.models.files.hub import DownloadError
from depthany.models.files.huggingface import save_huggingface
from depthany.models.files.names import has_swiglu, huggingface_name, official_name, version_1_name
from depthany.models.files.official import save_official
from depthany.models.files.weights import weights_sha256
from depthany.models.model import DenseModel, depth_anything, save_model
from depthany.models.output import Quantity

V2 = "depth_anything_v2_vits.pth"


@pytest.fixture(scope="module")
def vits() -> DenseModel:
    torch.manual_seed(0)
    return depth_anything("vits", "v2").eval()


@pytest.fixture(scope="module")
def official(vits: DenseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_official(vits, tmp_path_factory.mktemp("official") / V2)


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[DenseModel, dict[str, Tensor]]:
    """A vitt and its weights under official names."""
    torch.manual_seed(0)
    model = depth_anything("vitt", "v2").eval()
    return model, {official_name(name): tensor for name, tensor in model.state_dict().items()}


def same_weights(a: DenseModel, b: DenseModel) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def official_keys() -> dict[str, tuple[int, ...]]:
    """Names and shapes of `depth_anything_v2_vits.pth`, written down from the released code."""
    c, f, widths = 384, 64, (48, 96, 192, 384)
    keys: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, c),
        "pos_embed": (1, 1370, c),
        "mask_token": (1, c),
        "patch_embed.proj.weight": (c, 3, 14, 14),
        "patch_embed.proj.bias": (c,),
        "norm.weight": (c,),
        "norm.bias": (c,),
    }
    for i in range(12):
        for layer, out, width in (
            ("attn.qkv", 3 * c, c),
            ("attn.proj", c, c),
            ("mlp.fc1", 4 * c, c),
            ("mlp.fc2", c, 4 * c),
        ):
            keys[f"blocks.{i}.{layer}.weight"], keys[f"blocks.{i}.{layer}.bias"] = (out, width), (out,)
        for vector in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            keys[f"blocks.{i}.{vector}"] = (c,)
    keys = {f"pretrained.{name}": shape for name, shape in keys.items()}
    head: dict[str, tuple[int, ...]] = {}
    for i, width in enumerate(widths):
        head[f"projects.{i}.weight"], head[f"projects.{i}.bias"] = (width, c, 1, 1), (width,)
        head[f"scratch.layer{i + 1}_rn.weight"] = (f, width, 3, 3)
        for unit in ("resConfUnit1.conv1", "resConfUnit1.conv2", "resConfUnit2.conv1", "resConfUnit2.conv2"):
            name = f"scratch.refinenet{i + 1}.{unit}"
            head[f"{name}.weight"], head[f"{name}.bias"] = (f, f, 3, 3), (f,)
        name = f"scratch.refinenet{i + 1}.out_conv"
        head[f"{name}.weight"], head[f"{name}.bias"] = (f, f, 1, 1), (f,)
    for i, kernel in ((0, 4), (1, 2), (3, 3)):
        head[f"resize_layers.{i}.weight"] = (widths[i], widths[i], kernel, kernel)
        head[f"resize_layers.{i}.bias"] = (widths[i],)
    for name, out, width, kernel in (("1", f // 2, f, 3), ("2.0", 32, f // 2, 3), ("2.2", 1, 32, 1)):
        head[f"scratch.output_conv{name}.weight"] = (out, width, kernel, kernel)
        head[f"scratch.output_conv{name}.bias"] = (out,)
    return keys | {f"depth_head.{name}": shape for name, shape in head.items()}


def test_official_file_has_released_names_and_shapes(official: Path) -> None:
    state = torch.load(official, weights_only=True)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == official_keys()


def test_official_file_round_trip_is_exact(vits: DenseModel, official: Path) -> None:
    loaded = load_model(official)
    assert same_weights(loaded, vits)
    assert loaded.config == vits.config
    assert not loaded.training


@pytest.mark.parametrize(
    ("name", "taps", "max_depth"),
    [
        ("depth_anything_vits14.pth", "v1", None),
        ("depth_anything_v2_vitl.pth", "v2", None),  # the size is that of the shapes
        ("depth_anything_v2_metric_hypersim_vits.pth", "v2", 20.0),
        ("depth_anything_v2_metric_vkitti_vits.pth", "v2", 80.0),
    ],
)
def test_the_official_name_tells_generation_and_range(
    tiny: tuple[DenseModel, dict[str, Tensor]], tmp_path: Path, name: str, taps: str, max_depth: float | None
) -> None:
    torch.save(tiny[1], tmp_path / name)
    loaded = load_model(tmp_path / name)
    encoder = {"name": "dinov2", "size": "vitt", "taps": taps, "pos_interpolation": "official"}
    assert loaded.config["encoder"] == encoder
    assert loaded.quantity == (Quantity("disparity") if max_depth is None else Quantity("depth_m", max_depth))


def test_another_name_needs_to_be_told_the_generation(
    tiny: tuple[DenseModel, dict[str, Tensor]], tmp_path: Path
) -> None:
    torch.save(tiny[1], tmp_path / "mine.pth")
    with pytest.raises(ValueError, match=r"V1 and V2 files look alike inside: pass taps=v1 or taps=v2"):
        load_model(tmp_path / "mine.pth")
    v1, v2 = (load_model(tmp_path / "mine.pth", taps=taps) for taps in ("v1", "v2"))
    assert same_weights(v1, v2)
    assert (v1.encoder.taps, v2.encoder.taps) == ((8, 9, 10, 11), (2, 5, 8, 11))
    assert load_model(tmp_path / "mine.pth", taps="v2", max_depth_m=10.0).quantity.max_depth_m == 10.0


def test_contradicting_taps_are_refused(official: Path) -> None:
    with pytest.raises(ValueError, match=r"v2_vits.pth is a model with taps=v2, not v1: leave taps out"):
        load_model(official, taps="v1")
    with pytest.raises(ValueError, match=r"max_depth=None, not 20"):
        load_model(official, max_depth_m=20.0)


@pytest.mark.parametrize("wrapper", ["model", "state_dict", None])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "model.module."])
def test_wrapped_official_weights_are_unwrapped(
    tiny: tuple[DenseModel, dict[str, Tensor]], tmp_path: Path, wrapper: str | None, prefix: str
) -> None:
    model, weights = tiny
    state = OrderedDict((prefix + name, tensor) for name, tensor in weights.items())
    content = {wrapper: state, "optimizer": {"lr": 1e-3}, "epoch": 7} if wrapper else state
    torch.save(content, tmp_path / V2)
    assert same_weights(load_model(tmp_path / V2), model)


def test_only_unused_official_weights_are_dropped(
    tiny: tuple[DenseModel, dict[str, Tensor]], tmp_path: Path
) -> None:
    model, state = tiny
    unused = {"pretrained.mask_token": torch.ones(1, 192)}
    unused |= {f"depth_head.scratch.refinenet4.resConfUnit1.conv{n}.bias": torch.ones(32) for n in (1, 2)}
    torch.save(state | unused, tmp_path / V2)
    assert same_weights(load_model(tmp_path / V2), model)
    extra = {"depth_head.readout_projects.0.0.weight": torch.ones(1)}
    missing = {name: tensor for name, tensor in state.items() if "refinenet3.resConfUnit1.conv2" not in name}
    torch.save(missing | extra, tmp_path / V2)
    with pytest.raises(ValueError) as failure:
        load_model(tmp_path / V2)
    assert "2 missing: depth_head.scratch.refinenet3.resConfUnit1.conv2.weight, " in str(failure.value)
    assert "1 left over: depth_head.readout_projects.0.0.weight" in str(failure.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(
    tiny: tuple[DenseModel, dict[str, Tensor]], tmp_path: Path, value: float
) -> None:
    tiny[1]["pretrained.blocks.3.attn.proj.bias"][5] = value
    torch.save(tiny[1], tmp_path / V2)
    with pytest.raises(ValueError, match=r"NaN or infinity in 1 tensors: pretrained.blocks.3.attn.proj.bias"):
        load_model(tmp_path / V2)


def test_another_architecture_is_refused_with_what_it_has(tmp_path: Path) -> None:
    resnet = {"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(1000)}
    torch.save(resnet, tmp_path / V2)
    with pytest.raises(ValueError, match=r"is not a depth model.*it has: conv1.weight, fc.bias"):
        load_model(tmp_path / V2)
    save_file(resnet, tmp_path / "resnet.safetensors")
    with pytest.raises(FileNotFoundError, match=r"config.json is missing"):
        load_model(tmp_path / "resnet.safetensors")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"holds a list, expected a dict"):
        load_model(tmp_path / "list.pth")


def test_official_file_of_unknown_width_is_refused(tmp_path: Path) -> None:
    state = {"pretrained.cls_token": torch.zeros(1, 1, 100), "depth_head.x": torch.zeros(1)}
    torch.save(state, tmp_path / V2)
    with pytest.raises(ValueError, match=r"100 wide, expected one of vitt 192, vits 384"):
        load_model(tmp_path / V2)


@pytest.mark.parametrize("size", [0, 1, 1000, 200_000])
def test_a_truncated_official_file_ends_in_one_line(official: Path, tmp_path: Path, size: int) -> None:
    (tmp_path / V2).write_bytes(official.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"depth_anything_v2_vits.pth is ") as failure:
        load_model(tmp_path / V2)
    assert "\n" not in str(failure.value)


def test_the_official_format_has_no_sample_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"official code has no vitt: only vits, vitb, vitl, vitg"):
        save_official(depth_anything("vitt"), tmp_path / "a.pth")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("max_depth", [None, 80.0])
@pytest.mark.parametrize("taps", ["v1", "v2"])
def test_a_huggingface_folder_comes_back_bit_for_bit(
    tmp_path: Path, taps: str, max_depth: float | None
) -> None:
    model = depth_anything("vitt", taps, "size", max_depth, input_size=140)
    loaded = load_model(save_huggingface(model, tmp_path / "folder"))
    assert same_weights(loaded, model)
    assert loaded.config == model.config


def test_huggingface_takes_whole_metres_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"max_depth_m=7.5: transformers takes whole metres only"):
        save_huggingface(depth_anything("vitt", max_depth_m=7.5), tmp_path / "folder")


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        (
            "backbone_config",
            "out_indices",
            [1, 2, 3, 4],
            r"expected \[9, 10, 11, 12\] \(v1\) or \[3, 6",
        ),
        ("backbone_config", "num_attention_heads", 6, "num_attention_heads=6, expected 3"),
        ("backbone_config", "model_type", "dinov2_with_registers", "expected 'dinov2'"),
        ("backbone_config", "hidden_size", 100, "100 wide"),
        (None, "max_depth", 20, "'relative' with max_depth=20"),
        (None, "reassemble_factors", [2, 1, 1, 0.5], "reassemble_factors"),
        (None, "backbone_config", {"hidden_size": 192, "num_attention_heads": 3}, r"out_indices=\[\]"),
    ],
)
def test_other_huggingface_networks_are_refused(
    tmp_path: Path, part: str | None, key: str, value: object, message: str
) -> None:
    folder = save_huggingface(depth_anything("vitt"), tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    (config[part] if part else config)[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_out_features_replace_missing_out_indices(tmp_path: Path) -> None:
    folder = save_huggingface(depth_anything("vitt", "v2"), tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    del config["backbone_config"]["out_indices"]
    (folder / "config.json").write_text(json.dumps(config))
    assert load_model(folder).config["encoder"]["taps"] == "v2"


def test_missing_query_is_named_as_in_the_file(tmp_path: Path) -> None:
    folder = save_huggingface(depth_anything("vitt"), tmp_path / "folder")
    state = load_file(folder / "model.safetensors")
    del state["backbone.encoder.layer.2.attention.attention.key.bias"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"1 missing: backbone.encoder.layer.2.attention.attention.qkv.bias; 2 left over"
    ):
        load_model(folder)


def test_a_hub_id_is_fetched_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = depth_anything("vitt", "v2", "size")
    folder = save_huggingface(model, tmp_path / "snapshot")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda _, name: str(folder / name))
    assert same_weights(load_model("an-organisation/a-model"), model)


def test_a_hub_id_offline_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    with pytest.raises(
        DownloadError, match=r"config.json of an-organisation/a-model from the Hugging Face hub"
    ) as failure:
        load_model("an-organisation/a-model")
    assert "not a local path either" in str(failure.value)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("source", ["outputs/teacher.pt", "a/b/c", "nothing"])
def test_missing_path_is_not_sought_on_hub(source: str) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_model(source)


def test_half_precision_becomes_float32(tiny: tuple[DenseModel, dict[str, Tensor]], tmp_path: Path) -> None:
    torch.save({name: tensor.half() for name, tensor in tiny[1].items()}, tmp_path / V2)
    loaded = load_model(tmp_path / V2)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def write_version_1(model: DenseModel, folder: Path, arguments: dict[str, Any]) -> None:
    """Writes a run's model as version 1 did: the output convolutions belonged to the decoder."""
    weights = {version_1_name(name): t.contiguous() for name, t in model.state_dict().items()}
    assert "decoder.conv3.weight" in weights
    save_file(weights, folder / "model.safetensors")
    config = {"format": "depthany", "version": 1, "model": arguments}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("max_depth", [None, 20.0])
def test_version_1_loads_with_equal_maps(tmp_path: Path, max_depth: float | None) -> None:
    model = depth_anything("vitt", "v2", "size", max_depth, input_size=126).eval()
    arguments = {"encoder": "vitt", "taps": "v2", "pos_interpolation": "size", "max_depth": max_depth}
    write_version_1(model, tmp_path, {**arguments, "input_size": 126})
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    assert loaded.quantity == model.quantity
    image = torch.randn(1, 3, 70, 98)
    with torch.no_grad():
        assert torch.equal(loaded(image).map, model(image).map)


def test_kept_version_1_file_predicts_its_old_map(micro: str) -> None:
    folder = Path(__file__).with_name("version_1")  # written by the release that had version 1 alone
    model = load_model(folder)
    assert model.quantity == Quantity("depth_m", 20.0)
    image = torch.linspace(-2, 2, 3 * 28 * 42).reshape(1, 3, 28, 42)
    with torch.no_grad():
        depth_m = model(image).map  # [1 28 42]
    found = [depth_m.mean().item(), depth_m[0, 3, 5].item(), depth_m[0, 20, 30].item()]
    assert found == pytest.approx([10.134900, 10.109682, 10.134703], abs=1e-4)


def test_weights_hash_is_that_of_version_1(micro: str) -> None:
    model = load_model(Path(__file__).with_name("version_1"))
    assert weights_sha256(model) == "40107be85d63e0275ac7a97bc8c8a5d199d58cddd39a3a8c7648753170f0fcfa"


def test_version_1_checkpoint_loads(tmp_path: Path) -> None:
    model = depth_anything("vitt")
    state = {version_1_name(name): t for name, t in model.state_dict().items()}
    torch.save({"model": state, "model_config": {"encoder": "vitt", "taps": "v1"}}, tmp_path / "step_1.pt")
    loaded = load_model(tmp_path / "step_1.pt")
    assert all(torch.equal(loaded.state_dict()[name], t) for name, t in model.state_dict().items())


def test_contradicting_quantity_is_refused(tmp_path: Path) -> None:
    save_model(depth_anything("vitt"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantity"] = Quantity("depth_m", 20.0).to_config()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"predicts depth in metres up to 20 m, but its head"):
        load_model(tmp_path)


def test_an_older_config_without_the_new_keys_loads(tmp_path: Path) -> None:
    model = depth_anything("vitt")
    write_version_1(model, tmp_path, {"encoder": "vitt", "taps": "v1", "pos_interpolation": "official"})
    assert load_model(tmp_path).config == model.config


def test_every_width_names_one_encoder() -> None:
    assert len({spec.embed_dim for spec in SIZES.values()}) == len(SIZES)


@pytest.mark.parametrize("encoder", list(SIZES))
def test_no_two_weights_share_a_name(encoder: str) -> None:
    with torch.device("meta"):
        names = list(depth_anything(encoder).state_dict())
    swiglu = encoder == "vitg"
    for rename in (official_name, huggingface_name):
        assert len({rename(name, swiglu) for name in names}) == len(names)


def test_giant_has_swiglu_names_in_every_format() -> None:
    ours = "encoder.blocks.10.mlp.fc1.weight"
    assert official_name(ours, swiglu=True) == "pretrained.blocks.10.mlp.w12.weight"
    assert huggingface_name(ours, swiglu=True) == "backbone.encoder.layer.10.mlp.weights_in.weight"
    assert official_name(ours) == "pretrained.blocks.10.mlp.fc1.weight"
    assert huggingface_name(ours) == "backbone.encoder.layer.10.mlp.fc1.weight"


def test_only_the_giant_has_swiglu() -> None:
    assert [name for name, spec in SIZES.items() if has_swiglu(spec)] == ["vitg"]
