"""Start the model from trained weights, whole or in part, and keep parts of it as they are."""

import logging
from collections.abc import Mapping
from typing import Any

from depthany.models.files.loading import load_model
from depthany.models.model import DenseModel, build_model

logger = logging.getLogger(__name__)

INIT_PARTS = {
    "encoder": ("encoder",),
    "encoder+decoder": ("encoder", "decoder"),
    "all": ("encoder", "decoder", "head"),
}
FREEZE = {"none": (), "encoder": ("encoder",), "encoder+decoder": ("encoder", "decoder")}


def build_from(
    init: str, init_parts: str, parts: Mapping[str, Mapping[str, Any]], input_size: int
) -> DenseModel:
    """Builds a model with some parts of a trained model, and the others as the settings say, at random.

    A part that is taken is built as in the trained model. The log names where that differs from `parts`.

    Args:
        init: whatever `load_model` takes: a run, an official file, a Hugging Face folder or hub id.
        init_parts: a row of `INIT_PARTS`.
        parts: encoder, decoder and head of the settings; see `depthany.models.model.build_model`.
        input_size: pixels of the shorter side in training.

    Raises:
        ValueError: the trained model cannot be loaded, or its decoder does not fit the encoder.
    """
    source, taken = load_model(init), INIT_PARTS[init_parts]
    model = build_model(**{**parts, **{part: source.config[part] for part in taken}}, input_size=input_size)
    for part in taken:
        if others := _differences(parts[part], source.config[part]):
            logger.info("the %s is that of model.init=%s: %s", part, init, others)
        getattr(model, part).load_state_dict(getattr(source, part).state_dict())
    return model


def _differences(settings: Mapping[str, Any], trained: Mapping[str, Any]) -> str:
    """Returns in words what the trained part has and the settings say otherwise."""
    changed = {key: value for key, value in settings.items() if trained.get(key) != value}
    return " ".join(f"{key}={trained.get(key)} instead of {value}" for key, value in changed.items())
