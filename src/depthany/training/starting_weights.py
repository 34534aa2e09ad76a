"""Start the model from trained weights, whole or in part, and keep parts of it as they are."""

import logging
from collections.abc import Mapping, Set
from typing import Any

from torch import nn

from depthany.models.files.model_source import ModelSource
from depthany.models.model import DenseModel, build_model

logger = logging.getLogger(__name__)

INIT_PARTS = {
    "encoder": ("encoder",),
    "encoder+decoder": ("encoder", "decoder"),
    "all": ("encoder", "decoder", "head"),
}
DEPTH_PARTS = {"depth_head", "decoder", "neck"}  # of official files, ours and those of Hugging Face
FREEZE = {"none": (), "encoder": ("encoder",), "encoder+decoder": ("encoder", "decoder")}


def build_from(
    init: ModelSource, init_parts: str, parts: Mapping[str, Mapping[str, Any]], input_size: int
) -> DenseModel:
    """Builds a model with some parts of a trained model, and the others as the settings say, at random.

    A part that is taken is built as in the trained model. The log names where that differs from `parts`. With
    the decoder comes what a new head borrows from the old one, see `depthany.models.heads.head.Head.borrows`.

    Args:
        init: the trained model.
        init_parts: a row of `INIT_PARTS`.
        parts: encoder, decoder and head of the settings; see `depthany.models.model.build_model`.
        input_size: pixels of the shorter side in training.

    Raises:
        ValueError: the trained model cannot be loaded, or its decoder does not fit the encoder.
    """
    source, taken = init.load(), INIT_PARTS[init_parts]
    model = build_model(**{**parts, **{part: source.config[part] for part in taken}}, input_size=input_size)
    for part in taken:
        if others := _differences(parts[part], source.config[part]):
            logger.info("the %s is that of %s: %s", part, init, others)
        getattr(model, part).load_state_dict(getattr(source, part).state_dict())
    if "decoder" in taken and "head" not in taken:
        borrow_layers(model, source)
    return model


def borrow_layers(model: DenseModel, source: DenseModel) -> None:
    """Copies the layers that the head of `model` borrows from that of `source`, whose decoder it has."""
    for name in model.head.borrows.get(source.config["head"]["name"], ()):
        layer: nn.Module = source.head.get_submodule(name)
        model.head.get_submodule(name).load_state_dict(layer.state_dict())


def warn_of_unused_parts(weights: str, others: Set[str]) -> None:
    """Logs a warning if `model.weights` is a whole depth model, of which the encoder alone was taken.

    Args:
        others: as `load_encoder_weights` returns them.
    """
    if others & DEPTH_PARTS:
        logger.warning(
            "warning: model.weights=%s is a whole depth model: the encoder alone is taken, decoder and head "
            "start at random; model.init takes them too",
            weights,
        )


def _differences(settings: Mapping[str, Any], trained: Mapping[str, Any]) -> str:
    """Returns in words what the trained part has and the settings say otherwise."""
    changed = {key: value for key, value in settings.items() if trained.get(key) != value}
    return " ".join(f"{key}={trained.get(key)} instead of {value}" for key, value in changed.items())
