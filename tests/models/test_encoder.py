"""Encoder: DINOv2 tokens at any size, through timm's blocks."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from depthany.models import dinov2 as encoder_module
from depthany.models.dinov2 import SIZES, Dinov2, build_vit, resize_pos_embed
from depthany.models.encoder import patch_tokens


@pytest.fixture(scope="module")
def encoder() -> Dinov2:
    torch.manual_seed(0)
    return Dinov2("vitt").eval()


def images(h: int, w: int, b: int = 2) -> Tensor:
    return torch.randn(b, 3, h, w, generator=torch.Generator().manual_seed(1))


def test_tokens_at_native_size_equal_timm(encoder: Dinov2) -> None:
    vit = build_vit(SIZES["vitt"]).eval()
    left_over = vit.load_state_dict(encoder.state_dict())
    assert not left_over.missing_keys
    image = images(126, 126)
    with torch.no_grad():
        expected = vit.forward_features(image)[:, 1:]
        taps = vit.get_intermediate_layers(image, n=4, norm=True)
        tokens = [patch_tokens(level) for level in encoder(image)]
    torch.testing.assert_close(tokens[-1], expected)
    for ours, theirs in zip(tokens, taps, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_v1_taps_last_blocks_and_v2_spreads_them() -> None:
    assert SIZES["vits"].taps["v1"] == (8, 9, 10, 11)
    assert SIZES["vitl"].taps["v1"] == (20, 21, 22, 23)
    assert SIZES["vitg"].taps["v1"] == (36, 37, 38, 39)
    assert SIZES["vitb"].taps["v2"] == (2, 5, 8, 11)
    assert SIZES["vitl"].taps["v2"] == (4, 11, 17, 23)
    assert SIZES["vitg"].taps["v2"] == (9, 19, 29, 39)


def test_both_generations_end_with_the_final_block(encoder: Dinov2) -> None:
    spread = Dinov2("vitt", taps="v2").eval()
    spread.load_state_dict(encoder.state_dict())
    image = images(70, 70)
    with torch.no_grad():
        assert torch.equal(encoder(image)[-1], spread(image)[-1])
        assert not torch.equal(encoder(image)[0], spread(image)[0])


def test_every_tap_is_layer_normalised(encoder: Dinov2) -> None:
    with torch.no_grad():
        for level in encoder(images(70, 98)):
            assert level.shape == (2, 192, 5, 7)
            tokens = patch_tokens(level)
            torch.testing.assert_close(tokens.mean(-1), torch.zeros(2, 35), atol=1e-5, rtol=0)
            torch.testing.assert_close(tokens.var(-1, unbiased=False), torch.ones(2, 35), atol=1e-3, rtol=0)


def test_tokens_run_row_by_row(encoder: Dinov2) -> None:
    image = images(42, 70, b=1)
    changed = image.clone()
    changed[..., 14:28, 42:56] += 1  # patch row 1, column 3 of a 3 x 5 grid
    with torch.no_grad():
        difference = (encoder.embed(changed) - encoder.embed(image)).abs().sum(-1)[0]
    assert difference.nonzero().flatten().tolist() == [1 + 1 * 5 + 3]


@pytest.mark.parametrize("size", [(500, 333), (126, 130), (13, 14)])
def test_sides_must_be_multiples_of_14(encoder: Dinov2, size: tuple[int, int]) -> None:
    h, w = size
    with pytest.raises(
        ValueError, match=rf"image is \({h}, {w}\); each side must be a multiple of 14: resize"
    ):
        encoder(torch.zeros(1, 3, h, w))


@pytest.mark.parametrize(("p", "q"), [(37, 37), (37, 49), (9, 12), (1, 1), (50, 20)])
@pytest.mark.parametrize("grid", [9, 37])
def test_official_positions_use_offset_scale_factors(grid: int, p: int, q: int) -> None:
    pos_embed = torch.randn(1, 1 + grid * grid, 8, generator=torch.Generator().manual_seed(0))
    ours = resize_pos_embed(pos_embed, p, q)
    assert ours.shape == (1, 1 + p * q, 8)
    assert torch.equal(ours[:, 0], pos_embed[:, 0])
    if p == q == grid:
        assert torch.equal(ours, pos_embed)
        return
    cells = pos_embed[:, 1:].reshape(1, grid, grid, 8).permute(0, 3, 1, 2)
    factor = ((p + 0.1) / grid, (q + 0.1) / grid)
    expected = F.interpolate(cells, scale_factor=factor, mode="bicubic", antialias=False)
    torch.testing.assert_close(ours[:, 1:], expected.permute(0, 2, 3, 1).reshape(1, p * q, 8), atol=0, rtol=0)


def test_positions_by_size_differ_by_a_shift() -> None:
    ramp = torch.linspace(0, 1, 37).expand(37, 37).reshape(1, -1, 1)  # value = column / 36
    pos_embed = torch.cat([torch.zeros(1, 1, 1), ramp], dim=1)
    official = resize_pos_embed(pos_embed, 20, 20, "official")[0, 1:, 0].view(20, 20)
    by_size = resize_pos_embed(pos_embed, 20, 20, "size")[0, 1:, 0].view(20, 20)
    # sample points in cells: (i + 0.5) * 37 / 20 - 0.5 by size, (i + 0.5) * 37 / 20.1 - 0.5 officially
    for i in (14, 17):  # there the shift is 0.004; the cubic kernel bends a ramp by 0.001
        assert by_size[3, i].item() == pytest.approx(((i + 0.5) * 37 / 20 - 0.5) / 36, abs=1.5e-3)
        assert official[3, i].item() == pytest.approx(((i + 0.5) * 37 / 20.1 - 0.5) / 36, abs=1.5e-3)


def test_half_precision_positions_are_resampled_in_float32() -> None:
    pos_embed = torch.randn(1, 82, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    ours = resize_pos_embed(pos_embed, 5, 7)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, resize_pos_embed(pos_embed.float(), 5, 7).bfloat16())


def test_layer_scale_starts_at_one(encoder: Dinov2) -> None:
    assert (encoder.blocks[0].ls1.gamma == 1).all()


def test_attention_choice_changes_speed_not_tokens(encoder: Dinov2) -> None:
    image = images(70, 70)
    with torch.no_grad():
        exact = encoder(image)[-1]
        with torch.autocast("cpu", torch.bfloat16):
            rough = encoder(image)[-1]
        assert not encoder.blocks[0].attn.fused_attn
        again = encoder(image)[-1]
    assert torch.equal(exact, again)
    assert F.cosine_similarity(exact, rough.float(), dim=-1).min() > 0.999


def test_panorama_keeps_fused_attention(encoder: Dinov2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "MAX_SCORES", 2 * 3 * 26**2)  # 2 images, 3 heads, 25 patches and CLS
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        encoder(images(70, 70))
        assert not encoder.blocks[0].attn.fused_attn
        encoder(images(70, 84))
        assert encoder.blocks[0].attn.fused_attn


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vitx",), "unknown size of DINOv2 'vitx'; choose from vitt, vits, vitb, vitl, vitg"),
        (("vitt", "v3"), "unknown taps 'v3'; choose from v1, v2"),
        (("vitt", "v1", "nearest"), "unknown pos_interpolation 'nearest'; choose from official, size"),
    ],
)
def test_an_unknown_choice_lists_the_choices(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Dinov2(*arguments)
