"""What the weights of a dilated CNN were trained with, and whether an encoder computes with the same.

Padding, BatchNorm's epsilon, mean and std are not in the weights: with others they load, and give other
features.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from depthany.models.atrous_encoder import AtrousEncoder
from depthany.models.files.huggingface import PREPROCESSOR_NAME
from depthany.models.model import CONFIG_NAME
from depthany.models.preprocess import IMAGENET_MEAN, IMAGENET_STD

log = logging.getLogger(__name__)
GOOGLE = {"padding": "same", "bn_eps": 1e-3, "mean": [0.5] * 3, "std": [0.5] * 3}
TIMM = {"padding": "symmetric", "bn_eps": 1e-5, "mean": [*IMAGENET_MEAN], "std": [*IMAGENET_STD]}


def check_trunk_settings(encoder: AtrousEncoder, path: Path, is_google: bool) -> None:
    """Compares the settings of an encoder with those of the weights that it gets.

    Weights of timm with other settings give a warning: training adapts to them.

    Args:
        path: path of the weights, beside which a folder of transformers has its configuration.
        is_google: whether they have transformers' names of a MobileNetV2; else they are timm's.

    Raises:
        ValueError: the weights are Google's, and settings differ.
    """
    trained = google_settings(_json(path.with_name(CONFIG_NAME)), _json(path.with_name(PREPROCESSOR_NAME)))
    wanted: Mapping[str, Any] = trained if is_google else TIMM
    others = [key for key, value in wanted.items() if encoder.config[key] != value]
    if not others:
        return
    given = " ".join(f"{key}={_text(encoder.config[key])}" for key in others)
    remedy = " ".join(f"model.encoder.{key}={_text(wanted[key])}" for key in others)
    text = f"{path} was not trained with {given} of the encoder, which give other features: pass {remedy}"
    if is_google:
        raise ValueError(text)
    log.warning("warning: %s", text)


def google_settings(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    """Returns these settings from `config.json` and `preprocessor_config.json` of a MobileNetV2 folder."""
    return {
        "padding": "same" if config.get("tf_padding", True) else "symmetric",
        "bn_eps": float(config.get("layer_norm_eps", GOOGLE["bn_eps"])),
        "mean": [*preprocessor.get("image_mean", GOOGLE["mean"])],
        "std": [*preprocessor.get("image_std", GOOGLE["std"])],
    }


def _json(path: Path) -> dict[str, Any]:
    """Returns the content of a JSON file; nothing if it is not there or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _text(value: Any) -> str:
    """Returns a value as the command line takes it."""
    return str(value).replace(" ", "")
