"""timm models as encoders: levels, taps, gradients, pretrained weights, construction without memory, ONNX."""

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import RotaryEmbeddingDinoV3
from torch import Tensor, nn

from depthany.models.dinov2 import SIZES
from depthany.models.files.loading import load_model
from depthany.models.files.onnx import relative_difference
from depthany.models.files.weights import load_encoder_weights
from depthany.models.model import DenseModel, build_model, save_model
from depthany.models.taps import tapped_blocks
from depthany.models.timm_encoder import Rope, TimmEncoder
from depthany.models.timm_layout import inspect_model

DINOV3, CONVNEXT, RESNET = "vit_small_patch16_dinov3", "convnext_atto", "resnet18"
MULTIPLES = {DINOV3: 16, CONVNEXT: 32, RESNET: 32}
EVERY = pytest.mark.parametrize("name", MULTIPLES)


def build(name: str, seed: int = 0, taps: str | list[int] | None = None) -> TimmEncoder:
    """An encoder whose residual branches all matter: timm starts LayerScale and last BatchNorms near 0."""
    torch.manual_seed(seed)
    encoder = TimmEncoder(name, taps)
    for weight_name, weight in encoder.named_parameters():
        if weight.ndim == 1:
            nn.init.uniform_(weight, 0.5, 1.5)
        elif weight_name.endswith("qkv.weight"):
            nn.init.normal_(weight, std=0.1)  # attention that tells patches apart
    return encoder


@pytest.fixture(scope="module")
def encoders() -> dict[str, TimmEncoder]:
    """One of each kind in eval mode, not to be changed."""
    return {name: build(name).eval() for name in MULTIPLES}


def dense(name: str) -> DenseModel:
    """A model for relative disparity around an encoder as `build` returns it."""
    model = build_model({"name": "timm", "model": name})
    model.encoder.load_state_dict(build(name).state_dict())
    return model


def image_of(name: str, p: int, q: int, batch: int = 1) -> Tensor:
    """[b 3 h w] noise of p x q cells of the coarsest level."""
    generator = torch.Generator().manual_seed(p)
    return torch.randn(batch, 3, p * MULTIPLES[name], q * MULTIPLES[name], generator=generator)


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@EVERY
@torch.no_grad()
def test_levels_have_widths_and_strides(encoders, name: str) -> None:
    encoder = encoders[name]
    for p, q in ((2, 3), (3, 1)):
        image = image_of(name, p, q, batch=2)
        h, w = image.shape[-2:]
        expected = [(2, c, h // stride, w // stride) for c, stride in zip(encoder.widths, encoder.strides)]
        assert [tuple(level.shape) for level in encoder(image)] == expected


def test_facts_of_a_transformer_and_of_a_convnet(encoders) -> None:
    dinov3, convnext = encoders[DINOV3], encoders[CONVNEXT]
    assert (dinov3.label, dinov3.widths, dinov3.strides) == (DINOV3, (384,) * 4, (16,) * 4)
    assert (convnext.widths, convnext.strides) == ((40, 80, 160, 320), (4, 8, 16, 32))
    assert (dinov3.preprocessing.multiple, convnext.preprocessing.multiple) == (16, 32)
    assert len(list(dinov3.blocks)) == 12
    assert [type(block).__name__ for block in convnext.blocks] == ["ConvNeXtBlock"] * (2 + 2 + 6 + 2)
    assert [type(block).__name__ for block in encoders[RESNET].blocks] == ["BasicBlock"] * 8


def test_dpt_widths_are_depth_anythings() -> None:
    layout = inspect_model(DINOV3)
    for size in SIZES.values():
        wide = dataclasses.replace(layout, widths=(size.embed_dim,) * 4)
        assert wide.dpt_widths() == (size.dpt_features, size.out_channels)


def test_normalisation_is_that_of_the_weights() -> None:
    assert TimmEncoder("vit_tiny_patch16_224", "v1").preprocessing.mean == (0.5, 0.5, 0.5)


@torch.no_grad()
def test_level_is_the_normed_patches_of_its_block(encoders) -> None:
    encoder = encoders[DINOV3]
    vit, image = encoder.timm_model, image_of(DINOV3, 2, 3)
    tokens, rope = vit._pos_embed(vit.patch_embed(image))
    for block in vit.blocks[:9]:
        tokens = block(tokens, rope=rope)
    patches = vit.norm(tokens)[0, 1 + 4 :]  # after CLS and four registers
    torch.testing.assert_close(encoder(image)[0][0].flatten(1).T, patches)


@pytest.mark.parametrize("name", [DINOV3, "vit_small_patch14_reg4_dinov2", "mobilenetv2_035"])
@torch.no_grad()
def test_levels_equal_those_of_plain_timm(name: str) -> None:
    encoder = build(name, taps="v2" if "dino" in name else None).eval()
    arguments = {"dynamic_img_size": True} if "dino" in name else {}
    plain = timm.create_model(name, pretrained=False, num_classes=0, **arguments).eval()
    plain.load_state_dict(encoder.timm_model.state_dict(), strict="dino" in name)
    indices = [2, 5, 8, 11] if "dino" in name else [1, 2, 3, 4]
    side = encoder.preprocessing.multiple
    image = torch.randn(1, 3, 2 * side, 3 * side)
    expected = plain.forward_intermediates(
        image, indices=indices, norm="dino" in name, intermediates_only=True
    )
    for found, level in zip(encoder(image), expected, strict=True):
        torch.testing.assert_close(found, level, rtol=1e-4, atol=1e-4)


@EVERY
def test_every_weight_gets_a_gradient(name: str) -> None:
    encoder = build(name).train()
    sum(level.sin().sum() for level in encoder(image_of(name, 2, 3, batch=2))).backward()
    assert [weight for weight, tensor in encoder.named_parameters() if not tensor.grad.abs().sum() > 0] == []


def test_a_seed_decides_the_weights() -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(TimmEncoder(CONVNEXT).state_dict())
        inspect_model.cache_clear()  # looking up a model draws no random numbers
    first, again, other = states
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_config_builds_the_same_encoder() -> None:
    for arguments in ({"model": DINOV3, "taps": [0, 1, 2, 5]}, {"model": RESNET, "taps": None}):
        assert TimmEncoder(**arguments).config == arguments
    default = TimmEncoder(DINOV3)
    assert default.config == {"model": DINOV3, "taps": "v1"}
    assert default.indices == [8, 9, 10, 11]


def test_taps_choose_the_published_blocks() -> None:
    assert tapped_blocks("v1", 12, "a model") == (8, 9, 10, 11)
    assert tapped_blocks("v2", 12, "a model") == (2, 5, 8, 11)
    assert tapped_blocks("v2", 24, "a model") == (4, 11, 17, 23)
    assert tapped_blocks("v2", 40, "a model") == (9, 19, 29, 39)


def test_blocks_after_the_last_tap_are_left_out() -> None:
    assert len(TimmEncoder(DINOV3, [0, 1, 2, 5]).blocks) == 6


@pytest.mark.parametrize(
    "taps", ["v3", [1, 2, 3], [3, 2, 1, 0], [0, 1, 2, 12], [-1, 0, 1, 2], [0, 1, 2, 3.0]]
)
def test_wrong_taps_are_refused(taps: str | list[int]) -> None:
    with pytest.raises(ValueError, match=r"choose from v1, v2, or list four block numbers .* from 0 to 11"):
        TimmEncoder(DINOV3, taps)


MISTAKES = {
    "vit_smal_patch16_dinov3": "unknown timm model .* did you mean vit_small_patch16_dinov3",
    "hf-hub:someone/something": "unknown timm model",
    "resnet18.a9_in1k": "leave out 'a9_in1k', or choose from .*a1_in1k",
    "mixer_s32_224": "mixer_s32_224 does not take images of any size",
    "levit_128s": "has levels of strides 16, 32, 64: expected a transformer .* 4, 8, 16, 32",
}


@pytest.mark.parametrize("name, message", MISTAKES.items(), ids=MISTAKES)
def test_a_model_that_cannot_serve_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimmEncoder(name)


def test_a_convnet_refuses_taps() -> None:
    with pytest.raises(ValueError, match="strides 4, 8, 16, 32: leave taps out"):
        TimmEncoder(RESNET, "v1")


@EVERY
def test_sides_off_the_multiple_are_refused(encoders, name: str) -> None:
    with pytest.raises(ValueError, match=f"must be a multiple of {MULTIPLES[name]}"):
        encoders[name](torch.zeros(1, 3, 2 * MULTIPLES[name], 40))


@pytest.mark.parametrize("name", [DINOV3, CONVNEXT])
def test_activation_checkpointing_keeps_gradients_bit_for_bit(name: str) -> None:
    gradients, calls = [], []
    for checkpointing in (False, True):
        encoder = build(name).train()
        encoder.activation_checkpointing = checkpointing
        seen = list[nn.Module]()
        for block in encoder.blocks:
            block.register_forward_pre_hook(lambda module, _, seen=seen: seen.append(module))
        sum(level.sin().sum() for level in encoder(image_of(name, 2, 3))).backward()
        assert encoder.activation_checkpointing is checkpointing
        gradients.append([weight.grad for weight in encoder.parameters()])
        calls.append(len(seen))
    assert same(*gradients)
    assert calls == [12, 24]


def test_activation_checkpointing_refuses_batch_norm() -> None:
    encoder = TimmEncoder(RESNET)
    encoder.activation_checkpointing = False
    with pytest.raises(ValueError, match="resnet18 has BatchNorm"):
        encoder.activation_checkpointing = True


@EVERY
@torch.no_grad()
def test_a_copy_is_equal_and_independent(encoders, name: str) -> None:
    image = image_of(name, 1, 2)
    twin = copy.deepcopy(encoders[name])
    assert same(twin(image), encoders[name](image))
    assert set(twin.blocks) <= set(twin.modules())
    for weight in twin.parameters():
        weight.zero_()
    assert not same(twin(image), encoders[name](image))


@contextmanager
def empty_is_nan() -> Iterator[None]:
    """Fills new memory with NaN and the largest integers, so that a buffer left unwritten shows."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


# Buffers outside the state dict: eva02 has rotary bands and a fixed bias, swin the positions of its windows.
@pytest.mark.parametrize("name", [*MULTIPLES, "eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224"])
@torch.no_grad()
def test_built_without_memory_then_loaded_is_the_same(name: str) -> None:
    direct = build(name).eval()
    with torch.device("meta"):
        parent = nn.Sequential(TimmEncoder(**direct.config))
    with empty_is_nan():
        parent.to_empty(device="cpu")
    parent[0].load_state_dict(direct.state_dict())
    side = direct.preprocessing.multiple
    image = torch.randn(1, 3, 2 * side, 3 * side)
    assert same(parent.eval()[0](image), direct(image))


def test_rope_equals_timm_on_every_grid() -> None:
    theirs = RotaryEmbeddingDinoV3(64, 100.0, rotate_half=True)
    for grid in ((1, 1), (2, 3), (37, 5)):
        torch.testing.assert_close(Rope(theirs).get_embed(grid), theirs.get_embed(grid), rtol=0, atol=1e-5)


def test_rope_stays_float32_in_a_bfloat16_model() -> None:
    rope = Rope(RotaryEmbeddingDinoV3(64, 100.0))
    expected = rope.get_embed((4, 5))
    assert torch.equal(rope.to(torch.bfloat16).get_embed((4, 5)), expected)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_pretrained_files_load_without_their_classifier(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(1)
    whole = timm.create_model(RESNET, pretrained=False)
    path = tmp_path / f"weights{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    save(whole.state_dict(), path)
    encoder = TimmEncoder(RESNET)
    load_encoder_weights(encoder, path)
    assert encoder.unused_names() == {"fc.weight", "fc.bias"}
    assert torch.equal(encoder.timm_model.layer4[1].conv2.weight, whole.layer4[1].conv2.weight)


def test_pretrained_files_load_without_blocks_after_last_tap(tmp_path: Path) -> None:
    whole = TimmEncoder(DINOV3)
    save_file(whole.timm_model.state_dict(), tmp_path / "whole.safetensors")
    encoder = build(DINOV3, 1, [0, 1, 2, 3])
    load_encoder_weights(encoder, tmp_path / "whole.safetensors")
    for name, tensor in encoder.timm_model.state_dict().items():
        assert torch.equal(tensor, whole.timm_model.state_dict()[name]), name


def test_batch_counters_may_be_missing_from_a_file(tmp_path: Path) -> None:
    state = TimmEncoder(RESNET).timm_model.state_dict()
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    save_file(old, tmp_path / "old.safetensors")
    encoder = TimmEncoder(RESNET)
    load_encoder_weights(encoder, tmp_path / "old.safetensors")
    loaded = encoder.timm_model.state_dict()
    for name, tensor in old.items():
        assert torch.equal(loaded[name], tensor), name
    counters = [name for name in loaded if name.endswith("num_batches_tracked")]
    assert counters and not any(loaded[name] for name in counters)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("bn1.weight"), "1 missing: bn1.weight"),
        (lambda state: state.update(extra=torch.zeros(1)), "1 left over: extra"),
        (lambda state: state.update({"bn1.weight": torch.zeros(3)}), r"bn1.weight \(3,\) for \(64,\)"),
        (lambda state: state["bn1.weight"].fill_(torch.nan), "NaN or infinity in 1 tensors: bn1.weight"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, change, message: str) -> None:
    state = TimmEncoder(RESNET).timm_model.state_dict()
    change(state)
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match=message):
        load_encoder_weights(TimmEncoder(RESNET), tmp_path / "wrong.pth")


def test_without_a_file_the_hub_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, asked = build(CONVNEXT, 1), []
    save_file(source.timm_model.state_dict(), tmp_path / "cached")
    weights = (tmp_path / "cached").rename(tmp_path / "model.safetensors")

    def cached(repository: str, file_name: str) -> str:
        asked.append((repository, file_name))
        return str(weights)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    encoder = TimmEncoder(CONVNEXT)
    load_encoder_weights(encoder, None)
    assert asked == [("timm/convnext_atto.d2_in1k", "model.safetensors")]
    assert torch.equal(encoder.timm_model.stem[0].weight, source.timm_model.stem[0].weight)


def test_offline_the_error_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    with pytest.raises(RuntimeError) as failure:
        load_encoder_weights(TimmEncoder(CONVNEXT), None)
    assert "\n" not in str(failure.value)
    assert "the weights of convnext_atto from timm/convnext_atto.d2_in1k" in str(failure.value)
    assert "offline, pass a local file: model.weights=/path/to/model.safetensors" in str(failure.value)


@EVERY
def test_a_saved_model_loads_whole(name: str, tmp_path: Path) -> None:
    model, image = dense(name).train(), image_of(name, 2, 3, batch=2)
    model(image)  # moves running statistics
    save_model(model.eval(), tmp_path)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path)(image).map, model(image).map)


@EVERY
def test_two_steps_change_every_weight(name: str) -> None:
    torch.manual_seed(0)
    model = build_model({"name": "timm", "model": name}).train()
    start = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(2):  # a ResNet's residual branches begin at 0 and learn from the second step on
        model(image_of(name, 2, 3, batch=2)).map.sin().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    still = [key for key, weight in model.named_parameters() if torch.equal(weight, start[key])]
    assert still == []


class Tupled(nn.Module):
    """An encoder for the exporter, which wants a tuple."""

    def __init__(self, encoder: TimmEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.encoder(image))


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
@pytest.mark.slow
def test_rope_follows_the_image_in_a_graph(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    encoder = build(DINOV3, taps=[0, 1, 2, 3]).eval()  # fewer blocks: a third of the time
    batch, p, q = (torch.export.Dim(axis, min=1) for axis in ("batch", "p", "q"))
    program = torch.onnx.export(
        Tupled(encoder),
        (image_of(DINOV3, 3, 4, batch=2),),
        input_names=["image"],
        dynamic_shapes=({0: batch, 2: 16 * p, 3: 16 * q},),
        opset_version=18,
        dynamo=True,
        verbose=False,
    )
    program.save(tmp_path / "encoder.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx")
    for image in (image_of(DINOV3, 2, 5), image_of(DINOV3, 4, 1, batch=3)):
        expected = encoder(image)
        for found, level in zip(session.run(None, {"image": image.numpy()}), expected, strict=True):
            assert relative_difference(found, level.numpy())["max"] < 1e-4
