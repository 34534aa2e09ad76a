"""Heads of classes: sizes, resolutions, what the checkpoint keeps, and combinations that are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from depthany.data.class_lists import ADE20K
from depthany.models.dinov2 import Dinov2
from depthany.models.files.dinov2_linear import _size_and_levels
from depthany.models.files.loading import load_model
from depthany.models.heads.classes import LinearClassesHead
from depthany.models.infer import class_map
from depthany.models.model import DenseModel, build_model, save_model

pytestmark = pytest.mark.usefixtures("micro")
NAMES = ["wall", "sky", "tree"]
LINEAR, DPT = ("levels", "classes_linear"), ("dpt", "classes_dpt")


def model_of(decoder: str, head: str, **more: Any) -> DenseModel:
    torch.manual_seed(0)
    encoder = {"name": "dinov2", "size": "micro"}
    return build_model(encoder, {"name": decoder}, {"name": head, "class_names": NAMES, **more}, 28)


@pytest.mark.parametrize("parts", [LINEAR, DPT])
def test_logits_have_the_size_of_the_input(parts: tuple[str, str]) -> None:
    assert model_of(*parts)(torch.randn(2, 3, 28, 42)).map.shape == (2, 3, 28, 42)


@pytest.mark.parametrize("corners", [False, True])
def test_align_corners_is_kept_in_the_checkpoint(corners: bool, tmp_path: Path) -> None:
    colours = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    model = model_of(*LINEAR, align_corners=corners, class_colours=colours).eval()
    save_model(model, tmp_path)
    loaded, image = load_model(tmp_path), torch.randn(1, 3, 28, 42)
    assert loaded.quantity == model.quantity
    assert loaded.quantity.class_colours == ((1, 2, 3), (4, 5, 6), (7, 8, 9))
    with torch.no_grad():
        coarse = loaded.head.logits(loaded.encoder(image))  # type: ignore[operator]
        whole = F.interpolate(coarse, (28, 42), mode="bilinear", align_corners=corners)
        assert torch.equal(loaded(image).map, whole)


def test_linear_head_has_dinov2s_size() -> None:
    names = [str(i) for i in range(150)]
    sizes = {width: LinearClassesHead((width,) * 4, names) for width in (384, 768, 1024)}
    counts = [sum(p.numel() for p in head.parameters()) for head in sizes.values()]
    assert counts == [58_518, 116_886, 155_798]
    assert LinearClassesHead((8,) * 4, names, levels=4).norm.num_features == 32


def test_levels_of_unequal_size_are_refused() -> None:
    encoder, names = {"name": "atrous", "model": "mobilenetv2_035"}, {"class_names": NAMES}
    with pytest.raises(ValueError, match=r"have 4, 8, 16, 16 pixels .*: pass model\.head\.levels=2"):
        build_model(encoder, {"name": "levels"}, {"name": "classes_linear", "levels": 4, **names}, 65)
    model = build_model(encoder, {"name": "levels"}, {"name": "classes_linear", "levels": 2, **names}, 65)
    assert model.eval()(torch.zeros(1, 3, 65, 65)).map.shape == (1, 3, 65, 65)
    assert "strides" not in model.config["head"]


@pytest.mark.parametrize("levels", [1, 4])
def test_released_linear_head_joins_its_encoder(levels: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = Dinov2("micro")
    torch.save(encoder.state_dict(), tmp_path / "dinov2_micro14_pretrain.pth")
    width = levels * encoder.widths[0]
    norm, conv = nn.BatchNorm2d(width).eval(), nn.Conv2d(width, 150, 1)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    state = {f"decode_head.bn.{name}": tensor for name, tensor in norm.state_dict().items()}
    state |= {f"decode_head.conv_seg.{name}": tensor for name, tensor in conv.state_dict().items()}
    path = tmp_path / "dinov2_micro14_ade20k_head.pth"
    torch.save({"meta": {}, "state_dict": state}, path)
    model, image = load_model(path), torch.randn(1, 3, 28, 42)
    with torch.no_grad():
        expected = conv(norm(torch.cat(encoder.eval()(image)[-levels:], 1)))
        torch.testing.assert_close(model.head.logits(model.encoder(image)), expected)  # type: ignore[operator]
    assert model.quantity.class_names == ADE20K.names
    assert (model.head.align_corners, model.input_size) == (False, 518)


def test_linear_head_of_two_sizes_needs_its_name(tmp_path: Path) -> None:
    assert _size_and_levels(tmp_path / "dinov2_vits14_ade20k_ms_head.pth", 1536) == ("vits", 4)
    assert _size_and_levels(tmp_path / "dinov2_vitg14_ade20k_linear_head.pth", 1536) == ("vitg", 1)
    assert _size_and_levels(tmp_path / "mine.pth", 768) == ("vitb", 1)
    with pytest.raises(ValueError, match=r"1536 channels fits vitg, vits: expected the name of the released"):
        _size_and_levels(tmp_path / "mine.pth", 1536)
    with pytest.raises(ValueError, match=r"100 channels fits no DINOv2"):
        _size_and_levels(tmp_path / "mine.pth", 100)


def test_frozen_encoder_stays_in_eval_mode() -> None:
    model = model_of(*LINEAR)
    model.freeze(("encoder",))
    model.train()
    assert not model.encoder.training
    assert model.head.training
    assert not any(p.requires_grad for p in model.encoder.parameters())


def test_head_and_decoder_must_fit() -> None:
    with pytest.raises(ValueError, match=r"classes_linear does not go with decoder dpt: choose model"):
        model_of("dpt", "classes_linear")
    with pytest.raises(ValueError, match=r"classes_dpt does not go with decoder levels: choose model"):
        model_of("levels", "classes_dpt")
    with pytest.raises(ValueError, match=r"expected 1 to 255 different names"):
        model_of(*LINEAR, class_names=None)


def test_infer_returns_class_numbers_of_the_photo() -> None:
    image = np.random.default_rng(0).integers(0, 255, (35, 50, 3), dtype=np.uint8)
    numbers = model_of(*DPT).eval().infer(image)
    assert (numbers.shape, numbers.dtype) == ((35, 50), np.uint8)
    assert numbers.max() < 3


def test_class_map_is_argmax_of_enlarged_logits() -> None:
    logits = torch.randn(40, 5, 6, generator=torch.Generator().manual_seed(0))  # more than at once
    whole = F.interpolate(logits[None], (17, 23), mode="bilinear", align_corners=False)[0]
    assert torch.equal(class_map(logits, (17, 23), False).long(), whole.argmax(0))
