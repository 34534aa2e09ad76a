"""Outputs equal those of `transformers` and of the released interpolation, with random weights that matter.

All comparisons are in float32, within 1e-4 of the range of the reference.
"""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from depthany import load_model
from depthany.models import dinov2 as encoder_module
from depthany.models.dinov2 import SIZES, Dinov2
from depthany.models.encoder import patch_tokens
from depthany.models.files.huggingface import save_huggingface
from depthany.models.files.weights import load_encoder_weights
from depthany.models.model import depth_anything

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
REDUCED_TAPS = {"v1": (1, 2, 3, 4), "v2": (0, 1, 3, 4)}  # of a depth of 5 blocks
IMAGE_SIZES = [(518, 518), (70, 154), (126, 98)]


@pytest.fixture
def reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    """All sizes have 5 blocks of their full width, and every head its full width."""
    for name, spec in list(SIZES.items()):
        monkeypatch.setitem(encoder_module.SIZES, name, dataclasses.replace(spec, depth=5, taps=REDUCED_TAPS))


@torch.no_grad()
def enliven(module: nn.Module, seed: int = 0) -> None:
    """Random weights with which every parameter counts: matrices keep the variance, biases are not 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        parameter.normal_(generator=generator)
        if parameter.ndim >= 2 and "token" not in name and "pos" not in name:
            parameter.mul_(1 / math.sqrt(parameter[0].numel()))
        elif name.endswith(("gamma", "lambda1", "norm.weight", "norm1.weight", "norm2.weight")):
            parameter.mul_(0.2).add_(1)
        else:
            parameter.mul_(0.3)


@torch.no_grad()
def center(model: nn.Module, last: nn.Module) -> None:
    """Shift the last layer so that the final activation cuts 30 % of its values off (or bends them)."""
    outputs: list[Tensor] = []
    handle = last.register_forward_hook(lambda _, __, output: outputs.append(output))
    model(images(70, 70))
    handle.remove()
    last.bias -= outputs[0].quantile(0.3)


def hf_model(encoder: str, taps: str, **head) -> nn.Module:
    """A random `DepthAnythingForDepthEstimation` of this size, from our table alone."""
    spec = SIZES[encoder]
    backbone = transformers.Dinov2Config(
        hidden_size=spec.embed_dim,
        num_hidden_layers=spec.depth,
        num_attention_heads=spec.heads,
        image_size=spec.image_size,
        use_swiglu_ffn=encoder == "vitg",
        out_indices=[tap + 1 for tap in spec.taps[taps]],
        reshape_hidden_states=False,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=spec.embed_dim,
        neck_hidden_sizes=list(spec.out_channels),
        fusion_hidden_size=spec.dpt_features,
        **head,
    )
    with torch.device("meta"):  # its own initialisation would take longer than all the rest
        model = transformers.DepthAnythingForDepthEstimation(config)
    model.to_empty(device="cpu").eval()
    enliven(model)
    center(model, model.head.conv3)
    return model


def images(h: int, w: int) -> Tensor:
    return torch.randn(1, 3, h, w, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def difference(ours: nn.Module, theirs: nn.Module, image: Tensor) -> float:
    """Largest difference as a part of the range of their output, which is not degenerate."""
    expected = theirs(image).predicted_depth
    spread = (expected.max() - expected.min()).item()
    assert spread > 1e-2
    assert (expected > 0).float().mean() > 0.1
    assert expected.std() > 0.02 * spread
    return (ours(image).map - expected).abs().max().item() / spread


def check_parity(folder: Path, encoder: str, taps: str, sizes: list[tuple[int, int]], **head) -> None:
    theirs = hf_model(encoder, taps, **head)
    theirs.save_pretrained(folder)
    ours = load_model(folder)
    assert (ours.encoder.label, ours.config["encoder"]["taps"]) == (encoder, taps)
    for size in sizes:
        found = difference(ours, theirs, images(*size))
        print(f"parity {encoder} {taps} {head} {size}: {found:.1e}")
        assert found < TOLERANCE


@pytest.mark.parametrize(
    "encoder, taps",
    [("vitt", "v1"), ("vitt", "v2"), ("vits", "v2"), pytest.param("vits", "v1", marks=pytest.mark.slow)],
)
def test_small_sizes_equal_transformers_at_every_tap(tmp_path: Path, encoder: str, taps: str) -> None:
    check_parity(tmp_path, encoder, taps, IMAGE_SIZES)


@pytest.mark.slow
def test_vitb_equals_transformers(tmp_path: Path) -> None:
    check_parity(tmp_path, "vitb", "v2", IMAGE_SIZES[1:])


@pytest.mark.usefixtures("reduced")
@pytest.mark.parametrize(
    "encoder, taps", [("vitl", "v1"), pytest.param("vitg", "v2", marks=pytest.mark.slow)]
)
def test_large_widths_and_heads_equal_transformers(tmp_path: Path, encoder: str, taps: str) -> None:
    check_parity(tmp_path, encoder, taps, IMAGE_SIZES[1:])


@pytest.mark.slow
@pytest.mark.parametrize(
    "encoder, taps, sizes",
    [("vitb", "v1", IMAGE_SIZES), ("vitl", "v2", IMAGE_SIZES[1:])],
    ids=["vitb", "vitl"],
)
def test_full_depths_equal_transformers(
    tmp_path: Path, encoder: str, taps: str, sizes: list[tuple[int, int]]
) -> None:
    check_parity(tmp_path, encoder, taps, sizes)


def test_a_metric_model_equals_transformers_in_metres(tmp_path: Path) -> None:
    check_parity(tmp_path, "vitt", "v2", IMAGE_SIZES[1:], depth_estimation_type="metric", max_depth=20)
    ours = load_model(tmp_path)
    with torch.no_grad():
        depth_m = ours(images(70, 70)).map
    assert ours.quantity.max_depth_m == 20.0
    assert 0 <= depth_m.min() < depth_m.max() <= 20
    assert depth_m.max() > 10


def bicubic_weights(cells: int, grid: int, scale: float) -> Tensor:
    """[cells grid]: share of each of `grid` values in each of `cells` samples, by Keys' kernel, a = -0.75.

    Sample i sits at (i + 0.5) / scale - 0.5; values beyond the border are those of the border.
    """
    weights = torch.zeros(cells, grid, dtype=torch.float64)
    for i in range(cells):
        position = (i + 0.5) / scale - 0.5
        first = math.floor(position) - 1
        for k in range(first, first + 4):
            t, a = abs(position - k), -0.75
            near = (a + 2) * t**3 - (a + 3) * t**2 + 1
            far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
            weights[i, min(max(k, 0), grid - 1)] += near if t <= 1 else far
    return weights


def officially_interpolated(pos_embed: Tensor, p: int, q: int) -> Tensor:
    """The released interpolation by hand: scale factors with 0.1 added to the cells, no antialiasing."""
    grid = math.isqrt(pos_embed.shape[1] - 1)
    if p == q == grid:
        return pos_embed
    cells = pos_embed[0, 1:].double().unflatten(0, (grid, grid))  # [g g c]
    rows, columns = bicubic_weights(p, grid, (p + 0.1) / grid), bicubic_weights(q, grid, (q + 0.1) / grid)
    resampled = torch.einsum("pg,ghc,qh->pqc", rows, cells, columns).flatten(0, 1)
    return torch.cat([pos_embed[:, :1], resampled[None].float()], dim=1)


@pytest.mark.parametrize("taps", ["v1", "v2"])
def test_official_positions_equal_the_released_interpolation(tmp_path: Path, taps: str) -> None:
    theirs = hf_model("vitt", taps)
    theirs.save_pretrained(tmp_path)
    ours = depth_anything("vitt", taps, "official").eval()
    ours.load_state_dict(load_model(tmp_path).state_dict())
    embeddings = theirs.backbone.embeddings
    by_size = [difference(ours, theirs, images(*size)) for size in IMAGE_SIZES]
    embeddings.interpolate_pos_encoding = lambda _, h, w: officially_interpolated(
        embeddings.position_embeddings, h // 14, w // 14
    )
    officially = [difference(ours, theirs, images(*size)) for size in IMAGE_SIZES]
    print(f"parity official {taps}: {officially}, with positions by size: {by_size}")
    assert max(officially) < TOLERANCE
    assert min(by_size) > TOLERANCE  # the trap is one


def test_a_saved_folder_gives_transformers_our_output(tmp_path: Path) -> None:
    for max_depth in (None, 80.0):
        ours = depth_anything("vitt", "v2", "size", max_depth, input_size=126).eval()
        enliven(ours)
        center(ours, ours.head.conv3)
        theirs = transformers.AutoModelForDepthEstimation.from_pretrained(
            save_huggingface(ours, tmp_path / f"{max_depth}")
        ).eval()
        assert all(difference(ours, theirs, images(*size)) < TOLERANCE for size in IMAGE_SIZES)


def photo(height: int, width: int) -> np.ndarray:
    """Smooth RGB uint8: resampling kernels differ little on it."""
    rows, columns = np.mgrid[:height, :width] / 40
    waves = [np.sin(rows + k) * np.cos(columns * (1 + 0.3 * k)) for k in range(3)]
    return (127 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)


@pytest.mark.parametrize("size", [(126, 182), (300, 400)])
def test_pipeline_map_differs_by_resampling_alone(tmp_path: Path, size: tuple[int, int]) -> None:
    ours = depth_anything("vitt", "v2", "size", input_size=126).eval()
    enliven(ours)
    center(ours, ours.head.conv3)
    folder = str(save_huggingface(ours, tmp_path))
    estimate = transformers.pipeline("depth-estimation", folder, image_processor=folder, device="cpu")
    image = photo(*size)
    expected = estimate(Image.fromarray(image))["predicted_depth"].numpy()
    found = np.abs(ours.infer(image) - expected) / np.ptp(expected)
    assert expected.shape == size
    assert np.ptp(expected) > 0.1
    print(f"pipeline {size}: largest {found.max():.1e}, mean {found.mean():.1e}")
    if size == (126, 182):  # the model's own: nothing is resampled
        assert found.max() < TOLERANCE
    assert found.mean() < 0.02  # Pillow's antialiased kernel in, bicubic out; random maps are full of edges


@pytest.mark.parametrize("encoder", ["vitt", "vitg"])
def test_an_encoder_starts_from_a_dinov2_folder(
    tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    width, heads = (96, 3) if encoder == "vitg" else (192, 3)
    spec = dataclasses.replace(
        SIZES[encoder], embed_dim=width, depth=5, heads=heads, taps=REDUCED_TAPS, image_size=42
    )
    monkeypatch.setitem(encoder_module.SIZES, encoder, spec)
    config = transformers.Dinov2Config(
        hidden_size=width,
        num_hidden_layers=5,
        num_attention_heads=heads,
        image_size=42,
        use_swiglu_ffn=encoder == "vitg",
    )
    theirs = transformers.Dinov2Model(config).eval()
    enliven(theirs)
    theirs.save_pretrained(tmp_path / "encoder")
    with_classifier = transformers.Dinov2ForImageClassification(config)
    with_classifier.dinov2.load_state_dict(theirs.state_dict())
    with_classifier.save_pretrained(tmp_path / "classifier")
    ours = Dinov2(encoder, pos_interpolation="size").eval()
    load_encoder_weights(ours, tmp_path / "classifier")
    cls_token = ours.cls_token.clone()
    load_encoder_weights(ours, tmp_path / "encoder" / "model.safetensors")
    assert torch.equal(ours.cls_token, cls_token)
    load_encoder_weights(ours, tmp_path / "encoder")
    with torch.no_grad():
        for size in ((42, 42), (28, 70)):
            expected = theirs(images(*size)).last_hidden_state[:, 1:]
            torch.testing.assert_close(patch_tokens(ours(images(*size))[-1]), expected, atol=1e-4, rtol=0)
            assert expected.std() > 0.5


def step_at_rim(values: np.ndarray) -> float:
    """How much a map changes over its outermost three pixels, as a multiple of what it changes inside."""
    h, w = values.shape
    rim = [values[0] - values[3], values[-1] - values[-4]]
    rim += [values[:, 0] - values[:, 3], values[:, -1] - values[:, -4]]
    inner = values[h // 4 : -h // 4, w // 4 : -w // 4]
    inside = [inner[3:] - inner[:-3], inner[:, 3:] - inner[:, :-3]]
    of_rim, of_inside = (np.abs(np.concatenate([part.ravel() for part in parts])) for parts in (rim, inside))
    return float(of_rim.mean() / of_inside.mean())


@torch.no_grad()
def test_rim_is_the_originals_zero_padding(tmp_path: Path) -> None:
    theirs = hf_model("vitt", "v1")
    theirs.save_pretrained(tmp_path)
    ours, image = load_model(tmp_path), torch.from_numpy(photo(126, 168)).permute(2, 0, 1)[None]
    image = ours.preprocessing.normalise(image)
    as_released = step_at_rim(theirs(image).predicted_depth[0].numpy())
    assert as_released > 2
    assert step_at_rim(ours(image).map[0].numpy()) == pytest.approx(as_released, rel=1e-3)
    for name, layer in ours.named_modules():
        if (
            isinstance(layer, nn.Conv2d)
            and layer.kernel_size == (3, 3)
            and name.startswith(("decoder", "head"))
        ):
            assert layer.padding == (1, 1) and layer.padding_mode == "zeros", name
            layer.padding_mode, layer._reversed_padding_repeated_twice = "replicate", [1, 1, 1, 1]
    assert step_at_rim(ours(image).map[0].numpy()) < as_released / 2
