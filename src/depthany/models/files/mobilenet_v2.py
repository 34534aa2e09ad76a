"""Folders of transformers' `MobileNetV2ForSemanticSegmentation`: Google's DeepLab V3 on MobileNetV2.

Source: transformers 5.24, `models/mobilenet_v2`; on the hub google/deeplabv3_mobilenet_v2_1.0_513. Same
layers, same logits; `conv_1x1` (320 to 1280 channels) is in the file and without effect on them.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from depthany.models.atrous_encoder import AtrousEncoder, is_mobilenet
from depthany.models.files.found import Found
from depthany.models.files.huggingface import PREPROCESSOR_NAME, write_json
from depthany.models.files.trunk_settings import google_settings
from depthany.models.heads.deeplab import DeepLabHead
from depthany.models.model import CONFIG_NAME, WEIGHTS_NAME, DenseModel
from depthany.system.files import write_atomically

MODEL_TYPE, ARCHITECTURE = "mobilenet_v2", "MobileNetV2ForSemanticSegmentation"
TIMM_OF_MULTIPLIER = {0.35: "035", 0.5: "050", 0.75: "075", 1.0: "100", 1.4: "140"}
UNUSED = "mobilenet_v2.conv_1x1."
UNUSED_CHANNELS = 1280  # more for a multiplier above 1
COUNTER = "num_batches_tracked"
GOOGLE_DROPOUT, HF_DROPOUT = 0.1, 0.8  # Google keeps .9; transformers' default drops .8
IGNORED = 255

# transformers' key -> what Google's network has
EXPECTED: dict[str, Any] = {
    "hidden_act": "relu6",
    "expand_ratio": 6.0,
    "first_layer_is_expansion": True,
    "depth_divisible_by": 8,
    "min_depth": 8,
    "num_channels": 3,
}
BLOCKS_BEFORE = (0, 2, 5, 9, 12, 15)  # inverted residuals before each stage of them
STEM = {"conv_dw": "conv_3x3.convolution", "bn1": "conv_3x3.normalization"}
STEM |= {"conv_pw": "reduce_1x1.convolution", "bn2": "reduce_1x1.normalization"}
BLOCK = {
    "conv_pw": "expand_1x1.convolution",
    "bn1": "expand_1x1.normalization",
    "conv_dw": "conv_3x3.convolution",
    "bn2": "conv_3x3.normalization",
    "conv_pwl": "reduce_1x1.convolution",
    "bn3": "reduce_1x1.normalization",
}
HEAD = {
    "branches.0.1": "conv_pool.convolution",
    "branches.0.2": "conv_pool.normalization",
    "branches.1.0": "conv_aspp.convolution",
    "branches.1.1": "conv_aspp.normalization",
    "project.0": "conv_projection.convolution",
    "project.1": "conv_projection.normalization",
    "classifier": "classifier.convolution",
}


def is_mobilenet_v2(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` of transformers is that of a MobileNetV2."""
    return config.get("model_type") == MODEL_TYPE


def read_mobilenet_v2(
    path: Path, config: Mapping[str, Any], preprocessor: Mapping[str, Any], state: Mapping[str, Tensor]
) -> Found:
    """Returns what a folder of `MobileNetV2ForSemanticSegmentation` holds.

    Args:
        path: path of the weights.
        config: content of `config.json`.
        preprocessor: content of `preprocessor_config.json`, empty where there is none.
        state: tensors by their names in `transformers`.

    Raises:
        ValueError: it has no segmentation head, or an architecture that Google's DeepLab does not have.
    """
    name = "segmentation_head.classifier.convolution.weight"
    if name not in state:
        raise ValueError(f"{path} has no segmentation head: expected a {ARCHITECTURE}")
    for key, wanted in EXPECTED.items():
        if config.get(key, wanted) != wanted:
            raise ValueError(f"{path.with_name(CONFIG_NAME)}: {key}={config[key]!r}, expected {wanted!r}")
    kept = {key: tensor for key, tensor in state.items() if not key.startswith(UNUSED)}
    kept |= {key: tensor for key, tensor in _counters(kept).items() if key not in kept}
    return Found(path, _model_config(path, config, preprocessor, len(state[name])), kept, huggingface_name)


def huggingface_name(name: str) -> str:
    """Returns the name in such a folder of a weight of ours."""
    part, rest = name.split(".", 1)
    if part == "head":
        ours = next(each for each in HEAD if rest.startswith(f"{each}."))
        return f"segmentation_head.{HEAD[ours]}{rest[len(ours) :]}"
    rest = rest.removeprefix("timm_model.")
    if match := re.fullmatch(r"blocks\.(\d)\.(\d+)\.(\w+)\.(.+)", rest):
        stage, index, layer, last = int(match[1]), int(match[2]), match[3], match[4]
        if stage == 0:
            return f"mobilenet_v2.conv_stem.{STEM[layer]}.{last}"
        return f"mobilenet_v2.layer.{BLOCKS_BEFORE[stage - 1] + index}.{BLOCK[layer]}.{last}"
    layer, last = rest.split(".", 1)
    kind = {"conv_stem": "convolution", "bn1": "normalization"}[layer]
    return f"mobilenet_v2.conv_stem.first_conv.{kind}.{last}"


def is_google_trunk(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the names of transformers' MobileNetV2, whose weights are Google's."""
    return "mobilenet_v2.conv_stem.first_conv.convolution.weight" in state


def trunk_of(encoder: AtrousEncoder, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the trunk's weights in `state` by timm's names; those of any other file as they are."""
    if not is_google_trunk(state):
        return dict(state)
    known = {**state, **_counters(state)}
    names = {name: huggingface_name(f"encoder.{name}") for name in encoder.timm_model.state_dict()}
    return {ours: known[theirs] for ours, theirs in names.items() if theirs in known}


def require_mobilenet_v2(model: DenseModel) -> tuple[AtrousEncoder, DeepLabHead]:
    """Returns encoder and head; raises a ValueError if transformers' network cannot hold the model."""
    encoder, head = model.encoder, model.head
    is_google = isinstance(head, DeepLabHead) and head.config["style"] == "google"
    if not (is_google and isinstance(encoder, AtrousEncoder) and _multiplier(encoder)):
        raise ValueError(
            f"format=huggingface holds a DeepLab of a MobileNetV2 in Google's style, but this model has "
            f"encoder {model.encoder.label} and head {model.config['head']['name']}: use format=onnx"
        )
    assert isinstance(encoder, AtrousEncoder) and isinstance(head, DeepLabHead)
    if head.config["rates"] or head.config["width"] != 256:
        raise ValueError(
            f"format=huggingface has no atrous branches and a width of 256, but this model has "
            f"rates={head.config['rates']} width={head.config['width']}: use format=onnx"
        )
    return encoder, head


def save_mobilenet_v2(model: DenseModel, folder: str | Path) -> Path:
    """Writes a folder that `MobileNetV2ForSemanticSegmentation.from_pretrained` loads, with equal logits.

    Raises:
        ValueError: transformers' network cannot hold the model.
    """
    folder = Path(folder)
    encoder, head = require_mobilenet_v2(model)
    state = {
        huggingface_name(name): tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
    multiplier = _multiplier(encoder)
    assert multiplier is not None
    state |= _unused_weights(encoder.widths[-1], round(UNUSED_CHANNELS * max(1.0, multiplier)))
    names = dict(enumerate(model.quantity.class_names))
    config = {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        **EXPECTED,
        "depth_multiplier": multiplier,
        "output_stride": encoder.output_stride,
        "tf_padding": encoder.padding == "same",
        "layer_norm_eps": encoder.config["bn_eps"],
        "finegrained_output": True,
        "classifier_dropout_prob": head.config["dropout"],
        "semantic_loss_ignore_index": IGNORED,
        "image_size": model.input_size,
        "id2label": {str(index): name for index, name in names.items()},
        "label2id": {name: index for index, name in names.items()},
    }
    preprocessor = {
        "image_processor_type": "MobileNetV2ImageProcessor",
        "do_resize": True,
        "size": {"height": model.input_size, "width": model.input_size},
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(model.preprocessing.mean),
        "image_std": list(model.preprocessing.std),
    }
    write_json(folder / CONFIG_NAME, config)
    write_json(folder / PREPROCESSOR_NAME, preprocessor)
    write_atomically(folder / WEIGHTS_NAME, lambda partial: save_file(state, partial, {"format": "pt"}))
    return folder


def _model_config(
    path: Path, config: Mapping[str, Any], preprocessor: Mapping[str, Any], classes: int
) -> dict[str, Any]:
    """Returns arguments of `build_model`."""
    multiplier = float(config.get("depth_multiplier", 1.0))
    if multiplier not in TIMM_OF_MULTIPLIER:
        known = ", ".join(map(str, TIMM_OF_MULTIPLIER))
        raise ValueError(f"{path.with_name(CONFIG_NAME)}: depth_multiplier={multiplier}, expected {known}")
    names = {int(index): str(name) for index, name in (config.get("id2label") or {}).items()}
    size = preprocessor.get("size") or {}
    dropout = config.get("classifier_dropout_prob", HF_DROPOUT)
    return {
        "encoder": {
            "name": "atrous",
            "model": f"mobilenetv2_{TIMM_OF_MULTIPLIER[multiplier]}",
            "output_stride": int(config.get("output_stride", 32)),
            **google_settings(config, preprocessor),
        },
        "decoder": {"name": "levels"},
        "head": {
            "name": "classes_deeplab",
            "class_names": [names.get(index, f"LABEL_{index}") for index in range(classes)],
            "align_corners": True,
            "style": "google",
            "dropout": GOOGLE_DROPOUT if dropout == HF_DROPOUT else dropout,
        },
        "input_size": int(size.get("height", size.get("shortest_edge", 513))),
    }


def _counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the counters of BatchNorm's batches, which old files do not have and no layer uses."""
    ends = ".running_mean"
    return {f"{name.removesuffix(ends)}.{COUNTER}": torch.tensor(0) for name in state if name.endswith(ends)}


def _unused_weights(channels: int, width: int) -> dict[str, Tensor]:
    """Returns weights of the layer that transformers' file has and no logit depends on."""
    norm = nn.BatchNorm2d(width).state_dict()
    return {f"{UNUSED}convolution.weight": torch.zeros(width, channels, 1, 1)} | {
        f"{UNUSED}normalization.{name}": tensor for name, tensor in norm.items()
    }


def _multiplier(encoder: AtrousEncoder) -> float | None:
    """Returns transformers' `depth_multiplier` of a trunk, None if transformers has no such MobileNetV2."""
    stem = encoder.label.partition(".")[0]
    known = {f"mobilenetv2_{name}": multiplier for multiplier, name in TIMM_OF_MULTIPLIER.items()}
    return known.get(stem) if is_mobilenet(stem) else None
