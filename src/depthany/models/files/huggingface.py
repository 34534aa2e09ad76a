"""Hugging Face folders of Depth Anything: what their configuration says, and writing one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from depthany.models.dinov2 import PATCH, SIZES, Dinov2, Size
from depthany.models.files.names import (
    HF_UNUSED,
    has_swiglu,
    huggingface_name,
    split_qkv,
)
from depthany.models.files.released import (
    plain_state,
    require_depth_anything,
    size_of_width,
    unused_weights,
)
from depthany.models.heads.head import HIDDEN_CHANNELS
from depthany.models.model import CONFIG_NAME, WEIGHTS_NAME, DenseModel
from depthany.models.preprocess import IMAGENET_MEAN, IMAGENET_STD
from depthany.system.files import write_atomically

PREPROCESSOR_NAME = "preprocessor_config.json"
EXACT = "exact"  # subfolder with the image processor that agrees with `infer`
PROCESSOR_SOURCE = "huggingface_processor.py"  # beside this file
FOLDER_FILES = (CONFIG_NAME, WEIGHTS_NAME, PREPROCESSOR_NAME, EXACT)


REASSEMBLE_FACTORS = [4, 2, 1, 0.5]


_VITS = {"hidden_size": 384, "num_attention_heads": 6, "out_indices": [9, 10, 11, 12]}  # where none is named


_PILLOW_BICUBIC = 3


def arguments_from_huggingface(
    config: Mapping[str, Any], preprocessor: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Returns arguments of `depth_anything` for a `DepthAnythingForDepthEstimation` configuration.

    Args:
        preprocessor: content of `preprocessor_config.json`, empty where there is none.

    Raises:
        ValueError: it describes a network that is not a Depth Anything.
    """
    backbone: Mapping[str, Any] = config.get("backbone_config") or _VITS
    size = size_of_width(backbone.get("hidden_size", 768), where)
    spec = SIZES[size]
    _check_architecture(config, backbone, spec, where)
    sides = preprocessor.get("size") or {}
    return {
        "size": size,
        "taps": _generation(backbone, spec, where),
        "pos_interpolation": "size",
        "max_depth_m": _max_depth_m(config, where),
        "input_size": min(sides.get("height", 518), sides.get("width", 518)),
    }


def _check_architecture(
    config: Mapping[str, Any], backbone: Mapping[str, Any], spec: Size, where: str
) -> None:
    """Raises a `ValueError` for differences from Depth Anything that no shape of a weight would show."""
    expected_backbone = {
        "model_type": ("dinov2", "dinov2"),  # default of Hugging Face, value for this size
        "num_hidden_layers": (12, spec.depth),
        "num_attention_heads": (12, spec.heads),
        "layer_norm_eps": (1e-6, 1e-6),
        "hidden_act": ("gelu", "gelu"),
        "apply_layernorm": (True, True),
    }
    expected = {"reassemble_factors": (REASSEMBLE_FACTORS, REASSEMBLE_FACTORS), "head_in_index": (-1, -1)}
    for part, rows in ((backbone, expected_backbone), (config, expected)):
        for key, (default, wanted) in rows.items():
            if part.get(key, default) != wanted:
                raise ValueError(f"{where}: {key}={part.get(key, default)!r}, expected {wanted!r}")


def _generation(backbone: Mapping[str, Any], spec: Size, where: str) -> str:
    """Returns "v1" or "v2", by the backbone's stages; stage n is the output of block n - 1."""
    stages = backbone.get("out_indices") or [
        int(str(name).removeprefix("stage")) for name in backbone.get("out_features") or ()
    ]
    taps = tuple(stage - 1 for stage in stages)
    for generation, known in spec.taps.items():
        if taps == known:
            return generation
    expected = " or ".join(f"{[tap + 1 for tap in known]} ({name})" for name, known in spec.taps.items())
    raise ValueError(f"{where}: out_indices={list(stages)}, expected {expected}")


def _max_depth_m(config: Mapping[str, Any], where: str) -> float | None:
    kind, max_depth = config.get("depth_estimation_type", "relative"), config.get("max_depth")
    if kind == "metric":
        return 1.0 if max_depth is None else float(max_depth)
    if kind != "relative" or max_depth not in (None, 1):
        raise ValueError(
            f"{where}: depth_estimation_type={kind!r} with max_depth={max_depth!r}, expected 'metric', or "
            "'relative' with 1 or none"
        )
    return None


def save_huggingface(model: DenseModel, folder: str | Path) -> Path:
    """Writes a folder for `AutoModelForDepthEstimation.from_pretrained` and `pipeline("depth-estimation")`.

    The network there gives our output within 1e-4 of its range on the same input tensor if the model has
    pos_interpolation "size", or the image is square at the size of the position embeddings (518 pixels;
    vitt 126); otherwise it interpolates the positions its own way. `pipeline` also antialiases the
    image, resizes one smaller than the input size by its longer side, and resizes the output bicubically.
    The image processor in the subfolder "exact" works like `infer`; docs/exports.md has figures.

    Raises:
        ValueError: it cannot be written, or max_depth_m is not a whole number of metres, which
            transformers requires.
    """
    folder = Path(folder)
    encoder = require_depth_anything(model, "huggingface")
    swiglu = has_swiglu(encoder.spec)
    state = {huggingface_name(name, swiglu): tensor for name, tensor in plain_state(model).items()}
    state = split_qkv(state) | unused_weights(HF_UNUSED, encoder)
    write_json(folder / CONFIG_NAME, _huggingface_config(model, encoder))
    write_json(folder / PREPROCESSOR_NAME, _preprocessor_config(model))
    _write_exact_processor(folder / EXACT, _preprocessor_config(model))
    write_atomically(folder / WEIGHTS_NAME, lambda partial: save_file(state, partial, {"format": "pt"}))
    return folder


def _write_exact_processor(folder: Path, config: Mapping[str, Any]) -> None:
    """Writes a folder for `AutoImageProcessor.from_pretrained(..., trust_remote_code=True)`.

    A folder of its own: with custom code beside the model, `pipeline` would ask whether to run it.
    """
    source = Path(__file__).with_name(PROCESSOR_SOURCE)
    auto_map = {"AutoImageProcessor": f"{source.stem}.DepthanyImageProcessor"}
    write_json(folder / PREPROCESSOR_NAME, {**config, "auto_map": auto_map})
    text = source.read_text(encoding="utf-8")
    write_atomically(folder / source.name, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file, which appears whole or not at all."""
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text))


def _huggingface_config(model: DenseModel, encoder: Dinov2) -> dict[str, Any]:
    spec = encoder.spec
    stages = [tap + 1 for tap in encoder.taps]
    max_depth_m = model.quantity.max_depth_m or 1
    if max_depth_m != int(max_depth_m):
        raise ValueError(
            f"max_depth_m={max_depth_m}: transformers takes whole metres only; use another format"
        )
    return {
        "architectures": ["DepthAnythingForDepthEstimation"],
        "model_type": "depth_anything",
        "backbone_config": {
            "model_type": "dinov2",
            "hidden_size": spec.embed_dim,
            "num_hidden_layers": spec.depth,
            "num_attention_heads": spec.heads,
            "image_size": spec.image_size,
            "patch_size": PATCH,
            "use_swiglu_ffn": has_swiglu(spec),
            "out_indices": stages,
            "out_features": [f"stage{stage}" for stage in stages],
            "reshape_hidden_states": False,
            "apply_layernorm": True,
        },
        "patch_size": PATCH,
        "reassemble_hidden_size": spec.embed_dim,
        "reassemble_factors": REASSEMBLE_FACTORS,
        "neck_hidden_sizes": list(spec.out_channels),
        "fusion_hidden_size": spec.dpt_features,
        "head_hidden_size": HIDDEN_CHANNELS,
        "head_in_index": -1,
        "depth_estimation_type": "metric" if model.quantity.is_metric else "relative",
        "max_depth": int(max_depth_m),
    }


def _preprocessor_config(model: DenseModel) -> dict[str, Any]:
    return {
        "image_processor_type": "DPTImageProcessor",
        "do_resize": True,
        "size": {"height": model.input_size, "width": model.input_size},
        "keep_aspect_ratio": True,
        "ensure_multiple_of": PATCH,
        "resample": _PILLOW_BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
        "do_pad": False,
        "size_divisor": None,
    }
