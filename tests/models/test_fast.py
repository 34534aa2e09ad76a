"""Models made ready for inference: the same maps, to the rounding of the number format."""

import numpy as np
import pytest
import torch
from torch import nn

from depthany.models.dinov2 import SIZES, Size
from depthany.models.fast import BlockedAttention, FusedLinear, attention_of, prepare_for_inference
from depthany.models.model import DenseModel, depth_anything

GATED = Size("vit_giant_patch14_dinov2", 24, 4, 2, 28, 8, (8, 8, 8, 8), {"v1": (0, 1, 2, 3)})
IMAGE = torch.randn(2, 3, 28, 56, generator=torch.Generator().manual_seed(0))


def build(encoder: str, max_depth: float | None = None) -> DenseModel:
    """A random model whose LayerScale is not 1."""
    torch.manual_seed(0)
    model = depth_anything(encoder, max_depth_m=max_depth).eval()
    for block in model.encoder.blocks:
        nn.init.uniform_(block.ls1.gamma, 0.2, 2)
        nn.init.uniform_(block.ls2.gamma, 0.2, 2)
    return model


def drift(dtype: torch.dtype, encoder: str, max_depth: float | None = None) -> tuple[float, torch.Tensor]:
    """Largest difference as a share of the map's range, and the prepared model's map."""
    model = build(encoder, max_depth)
    with torch.inference_mode():
        expected = model(IMAGE).map
        found = prepare_for_inference(model, dtype)(IMAGE.to(dtype)).map
    return float((found - expected).abs().max() / (expected.max() - expected.min())), found


@pytest.fixture(params=["mlp", "gated"])
def encoder(request: pytest.FixtureRequest, micro: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny encoder with plain blocks, and one with the gated blocks of vitg."""
    monkeypatch.setitem(SIZES, "gated", GATED)
    return micro if request.param == "mlp" else "gated"


@pytest.mark.parametrize("max_depth", [None, 20.0])
def test_in_float32_the_map_changes_by_rounding_alone(encoder: str, max_depth: float | None) -> None:
    assert drift(torch.float32, encoder, max_depth)[0] < 5e-5


def test_bfloat16_map_is_close_and_has_no_steps(encoder: str) -> None:
    share, found = drift(torch.bfloat16, encoder)
    assert share < 0.1
    assert found.dtype == torch.float32
    assert (found != found.bfloat16().float()).float().mean() > 0.9, "finer than bfloat16 can hold"


def test_fused_layer_equals_both_it_replaces() -> None:
    linear, x = nn.Linear(24, 96), torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(FusedLinear(linear, "gelu")(x), nn.functional.gelu(linear(x)), atol=1e-6)
        assert torch.allclose(FusedLinear(linear)(x), linear(x), atol=1e-6)


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_prepared_model_infers_any_size(micro: str, amp: torch.dtype | None) -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 45, 3), dtype=np.uint8)
    expected = build(micro).infer(image, 28)
    for dtype, share in ((torch.float32, 1e-4 if amp is None else 0.1), (torch.bfloat16, 0.1)):
        found = prepare_for_inference(build(micro), dtype).infer(image, 28, amp=amp)
        assert (found.shape, found.dtype) == ((30, 45), np.float32)
        assert np.abs(found - expected).max() < share * np.ptp(expected)


def test_a_prepared_model_cannot_be_trained_by_accident(micro: str) -> None:
    model = prepare_for_inference(build(micro).train())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("scores", [2**20, 4 * 16 * 9, 1])
def test_blocked_attention_equals_plain_attention(
    micro: str, monkeypatch: pytest.MonkeyPatch, scores: int
) -> None:
    monkeypatch.setattr("depthany.models.fast.BLOCK_SCORES", scores)
    attention = build(micro).encoder.blocks[0].attn
    x = torch.randn(2, 37, 24, generator=torch.Generator().manual_seed(0))  # 37 rows: no multiple of a block
    with torch.inference_mode():
        assert torch.allclose(BlockedAttention(attention)(x), attention(x), atol=1e-6)


@pytest.mark.parametrize(("amx", "kind"), [(True, "fused"), (False, "blocks of rows")])
def test_the_processor_chooses_the_attention(
    micro: str, monkeypatch: pytest.MonkeyPatch, amx: bool, kind: str
) -> None:
    monkeypatch.setattr("depthany.models.fast.has_amx", lambda: amx)
    image = torch.randn(1, 3, 28, 42, generator=torch.Generator().manual_seed(0))
    expected = build(micro)(image).map
    model = prepare_for_inference(build(micro), torch.bfloat16)
    assert attention_of(model) == kind
    assert (model(image.bfloat16()).map - expected).abs().max() < 0.1 * (expected.max() - expected.min())
    assert attention_of(prepare_for_inference(build(micro))) == "fused"
