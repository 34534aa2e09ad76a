"""DeepLab V3: equal logits to transformers' MobileNetV2 and torchvision's ResNet, and its traps."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F

from depthany import load_model
from depthany.config.entry import config_dir
from depthany.data.class_lists import VOC
from depthany.models.atrous_encoder import AtrousEncoder, pad_symmetrically
from depthany.models.files.mobilenet_v2 import UNUSED, save_mobilenet_v2
from depthany.models.files.trunk_settings import TIMM, check_trunk_settings
from depthany.models.files.weights import load_encoder_weights
from depthany.models.heads.deeplab import DeepLabHead
from depthany.models.model import DenseModel, build_model, save_model
from depthany.training.stages.segmentation import keep_statistics

CLASSES = [f"class {index}" for index in range(21)]


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def randomise(model: nn.Module) -> nn.Module:
    """Gives BatchNorm statistics and scales that matter, and weights that keep the size of activations."""
    draw = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, generator=draw)
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
                (module.weight, 0.8, 1.3),
                (module.bias, -0.2, 0.2),
            ):
                tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=draw))
    return model.eval()


def transformers_model(**settings: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.MobileNetV2Config(num_labels=21, **settings)
    return randomise(transformers.MobileNetV2ForSemanticSegmentation(config))


def deeplab(encoder: dict[str, Any] | None = None, **head: Any) -> DenseModel:
    torch.manual_seed(0)
    model = build_model(
        {"name": "atrous", "model": "mobilenetv2_035", **(encoder or {})},
        {"name": "levels"},
        {"name": "classes_deeplab", "class_names": CLASSES, **head},
        input_size=65,
    )
    return randomise(model)  # type: ignore[return-value]


def picture(height: int, width: int, count: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height)) * 2 - 1


def logits_of(model: DenseModel, image: torch.Tensor) -> torch.Tensor:
    head = model.head
    assert isinstance(head, DeepLabHead)
    return head.logits(model.decoder(model.encoder(image)))


@pytest.mark.parametrize(
    "multiplier, output_stride",
    [
        (0.35, 16),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((0.35, 8), (1.0, 16), (1.0, 8))),
    ],
)
def test_logits_equal_those_of_transformers(multiplier: float, output_stride: int, tmp_path: Path) -> None:
    theirs = transformers_model(output_stride=output_stride, depth_multiplier=multiplier)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert ours.head.config["dropout"] == 0.1, "not the .8 of transformers' configuration"
    for height, width in ((513, 513), (512, 512), (480, 640)):
        image = picture(height, width)
        expected, found = theirs(pixel_values=image).logits, logits_of(ours, image)
        assert found.shape == (1, 21, -(-height // output_stride), -(-width // output_stride))
        assert torch.equal(found, expected), (height, width)
    enlarged = F.interpolate(expected, (480, 640), mode="bilinear", align_corners=True)
    assert torch.equal(ours(image).map, enlarged)


def test_parameters_are_as_many_as_published() -> None:
    with torch.device("meta"):
        model = build_model(
            {"name": "atrous"}, {"name": "levels"}, {"name": "classes_deeplab", "class_names": CLASSES}
        )
    assert sum(each.numel() for each in model.encoder.parameters()) == 1_811_712
    assert sum(each.numel() for each in model.parameters()) == 2_113_557  # 2.11 M in table 7


@pytest.mark.parametrize("multiplier", [0.35, pytest.param(1.4, marks=pytest.mark.slow)])
def test_exported_folder_gives_transformers_our_logits(multiplier: float, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers_model(output_stride=16, depth_multiplier=multiplier, tf_padding=False)
    theirs.save_pretrained(tmp_path / "theirs")
    save_model(load_model(tmp_path / "theirs"), tmp_path / "ours")
    ours = load_model(tmp_path / "ours")
    (tmp_path / "folder").mkdir()
    save_mobilenet_v2(ours, tmp_path / "folder")
    found, about = transformers.MobileNetV2ForSemanticSegmentation.from_pretrained(
        tmp_path / "folder", output_loading_info=True
    )
    assert not about["missing_keys"] and not about["unexpected_keys"]
    assert found.config.tf_padding is False and found.config.classifier_dropout_prob == 0.1
    loaded = load_model(tmp_path / "folder")
    for one, other in ((found, theirs), (loaded, ours)):
        weights = other.state_dict()
        assert one.state_dict().keys() == weights.keys()
        differing = [
            name for name, tensor in one.state_dict().items() if not torch.equal(tensor, weights[name])
        ]
        assert all(name.startswith(UNUSED) for name in differing), differing  # no logit depends on these
    image = picture(96, 130)
    close = {"rtol": 0, "atol": 1e-4}  # of logits up to 10: torch 2.15 rounds equal weights differently
    torch.testing.assert_close(
        found.eval()(pixel_values=image).logits, theirs(pixel_values=image).logits, **close
    )
    torch.testing.assert_close(logits_of(loaded, image), logits_of(ours, image), **close)


def test_folder_of_another_network_is_refused(tmp_path: Path) -> None:
    theirs = transformers_model(output_stride=16, depth_multiplier=0.35)
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for key, value in (("hidden_act", "relu"), ("depth_multiplier", 0.6)):
        path.write_text(json.dumps(config | {key: value}))
        with pytest.raises(ValueError, match=f"{key}={value!r}, expected"):
            load_model(tmp_path)
    with pytest.raises(ValueError, match=r"no atrous branches .* rates=\[6, 12, 18\]"):
        save_mobilenet_v2(deeplab(rates=[6, 12, 18]), tmp_path)
    with pytest.raises(ValueError, match="holds a DeepLab of a MobileNetV2 in Google's style"):
        save_mobilenet_v2(deeplab(style="torchvision"), tmp_path)


@pytest.mark.slow
def test_torchvision_file_gives_equal_logits(tmp_path: Path) -> None:
    from torchvision.models.segmentation import deeplabv3_resnet50

    theirs = randomise(deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=True))
    torch.save(theirs.state_dict(), tmp_path / "deeplabv3_resnet50_coco.pth")
    ours, image = load_model(tmp_path / "deeplabv3_resnet50_coco.pth"), picture(96, 130)
    torch.testing.assert_close(ours(image).map, theirs(image)["out"], atol=1e-5, rtol=1e-5)
    assert ours.quantity.class_names == VOC.names, "so that it can be scored on VOC"
    assert (ours.preprocessing.multiple, ours.encoder.strides[-1]) == (1, 8)


def test_paddings_agree_at_sixteen_k_plus_one_alone() -> None:
    same = AtrousEncoder("mobilenetv2_035").eval()
    symmetric = AtrousEncoder("mobilenetv2_035", padding="symmetric").eval()
    symmetric.load_state_dict(same.state_dict())
    for height, width in ((65, 97), (64, 97)):
        image = picture(height, width)
        is_equal = torch.equal(same(image)[-1], symmetric(image)[-1])
        assert is_equal == same.is_symmetric_at((height, width)) == (height == 65)
    expected = same(picture(65, 97))
    pad_symmetrically(same)
    assert all(map(torch.equal, expected, same(picture(65, 97))))


def test_rates_double_at_output_stride_eight() -> None:
    for encoder, expected in (
        ({"output_stride": 16}, [6, 12, 18]),
        ({"output_stride": 8}, [12, 24, 36]),
        ({"name": "dinov2", "size": "vits"}, [6, 12, 18]),
    ):
        widths, stride = (8, 8, 8, 8), encoder.get("output_stride", 14)
        head = DeepLabHead(widths, (stride,) * 4, CLASSES, rates=[6, 12, 18])
        found = [branch[0].dilation[0] for branch in list(head.branches)[2:]]
        assert found == expected


def test_weights_of_stride_sixteen_work_at_eight(tmp_path: Path) -> None:
    path = save_model(deeplab(rates=[6]), tmp_path).with_name("config.json")
    config = json.loads(path.read_text())
    config["model"]["encoder"]["output_stride"] = 8
    path.write_text(json.dumps(config))
    finer = load_model(tmp_path)
    assert logits_of(finer, picture(65, 65)).shape == (1, 21, 9, 9)
    assert finer.head.branches[2][0].dilation == (12, 12)


def test_pooling_comes_before_the_other_branches() -> None:
    assert isinstance(deeplab().head.branches[0][0], nn.AdaptiveAvgPool2d)
    assert isinstance(deeplab(style="torchvision").head.branches[-1][0], nn.AdaptiveAvgPool2d)


def test_one_image_in_training_is_refused() -> None:
    model = deeplab().train()
    assert model.head.least_images == 2
    with pytest.raises(ValueError, match="this batch of training has 1: raise batch_size"):
        model(picture(65, 65))
    assert model(picture(65, 65, 2)).map.shape == (2, 21, 65, 65)
    keep_statistics(model)
    assert model(picture(65, 65)).map.shape == (1, 21, 65, 65)
    assert model.eval()(picture(65, 65)).map.shape == (1, 21, 65, 65)


def test_frozen_trunk_keeps_its_statistics() -> None:
    model = deeplab()
    model.freeze(["encoder"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()(picture(65, 65, 2))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[0] for name in changed} == {"head"}


def test_weights_of_timm_and_google_start_the_trunk(tmp_path: Path) -> None:
    import timm

    whole = timm.create_model("mobilenetv2_035", pretrained=False)
    torch.save(whole.state_dict(), tmp_path / "timm.pth")
    trunk = AtrousEncoder("mobilenetv2_035", **TIMM)
    load_encoder_weights(trunk, tmp_path / "timm.pth")
    assert torch.equal(trunk.timm_model.conv_stem.weight, whole.conv_stem.weight)
    theirs = transformers_model(output_stride=16, depth_multiplier=0.35)
    theirs.save_pretrained(tmp_path / "google")
    google = AtrousEncoder("mobilenetv2_035")
    load_encoder_weights(google, tmp_path / "google")
    stem = theirs.mobilenet_v2.conv_stem.first_conv.convolution.weight
    assert torch.equal(google.timm_model.conv_stem.weight, stem)
    remedy = "padding=same model.encoder.bn_eps=0.001 model.encoder.mean=[0.5,0.5,0.5] model.encoder.std="
    with pytest.raises(ValueError, match=f"pass model.encoder.{re.escape(remedy)}"):
        load_encoder_weights(trunk, tmp_path / "google")


@pytest.mark.parametrize("key, value", [("bn_eps", 1e-5), ("mean", [0.4] * 3), ("std", [0.2] * 3)])
def test_settings_that_change_features_are_named(
    key: str, value: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    google = AtrousEncoder("mobilenetv2_035", **{key: value})
    with pytest.raises(ValueError, match=rf"pass model\.encoder\.{key}=\S*$"):
        check_trunk_settings(google, tmp_path / "model.safetensors", is_google=True)
    timm = AtrousEncoder("mobilenetv2_035", **{**TIMM, key: value if key != "bn_eps" else 1e-3})
    check_trunk_settings(timm, tmp_path / "model.safetensors", is_google=False)
    assert f"warning: {tmp_path / 'model.safetensors'} was not trained with {key}=" in caplog.text


def test_own_folder_of_huggingface_keeps_its_settings(tmp_path: Path) -> None:
    model = deeplab(TIMM)
    save_mobilenet_v2(model, tmp_path)
    trunk = AtrousEncoder("mobilenetv2_035", **TIMM)
    load_encoder_weights(trunk, tmp_path)
    expected: Any = model.encoder
    assert torch.equal(trunk.timm_model.conv_stem.weight, expected.timm_model.conv_stem.weight)


def test_default_mobilenet_fits_its_default_weights() -> None:
    encoder = OmegaConf.to_container(OmegaConf.load(config_dir() / "model/mobilenetv2.yaml").encoder)
    assert {key: encoder[key] for key in TIMM} == TIMM  # type: ignore[call-overload,index]


@pytest.mark.parametrize(
    "encoder, expected",
    [
        ({"model": "mobilenetv3_large_100"}, "choose from mobilenetv2_035"),
        ({"output_stride": 4}, "output_stride=4: expected 8, 16, 32"),
        ({"padding": "valid"}, "choose from same, symmetric"),
        ({"model": "resnet50"}, "padding=same: resnet50 has only padding=symmetric"),
        ({"bn_eps": 0}, "bn_eps=0: expected more than 0"),
        ({"std": [1, 1, 0]}, "three numbers"),
    ],
)
def test_mistakes_in_encoder_settings_are_named(encoder: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        deeplab(encoder)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"dropout": "abc"}, "dropout='abc': expected a number"),
        ({"dropout": 1}, r"dropout=1: expected a share in \[0, 1\)"),
        ({"rates": 6}, "rates=6: expected dilations of 1 or more"),
        ({"width": 0}, "width=0: expected 1 or more channels"),
        ({"width": "x"}, "width='x': expected a whole number"),
        ({"class_names": 3}, r"class_names=3: expected a list"),
        ({"class_colours": [1, 2]}, r"class_colours has 1: expected \[r, g, b\]"),
    ],
)
def test_wrong_types_end_in_one_line(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeepLabHead(**{"features": (8,) * 4, "strides": (16,) * 4, "class_names": CLASSES, **wrong})
