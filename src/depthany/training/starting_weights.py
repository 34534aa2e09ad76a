"""Start the model from trained weights, whole or in part, and keep parts of it as they are."""

import logging
from collections.abc import Mapping, Set
from typing import Any

from depthany.models.files.model_source import ModelSource
from depthany.models.model import DenseModel, build_model
from depthany.models.tables import HEADS

logger = logging.getLogger(__name__)

INIT_PARTS = {
    "encoder": ("encoder",),
    "encoder+decoder": ("encoder", "decoder"),
    "all": ("encoder", "decoder", "head"),
}
DEPTH_PARTS = {"depth_head", "decoder", "neck"}  # of official files, ours and those of Hugging Face
NETWORK = ("name", "size", "model")  # arguments of an encoder that say which network it is
FREEZE = {"none": (), "encoder": ("encoder",), "encoder+decoder": ("encoder", "decoder")}


def build_from(
    init: ModelSource, init_parts: str, parts: Mapping[str, Mapping[str, Any]], input_size: int
) -> DenseModel:
    """Builds a model with some parts of a trained model, and the others as the settings say, at random.

    A part that is taken is built as in the trained model. The log names where that differs from `parts` (a
    warning, if the encoder is another network), and which parts start at random. A head that is put on
    another, such as bins on a relative model, is built as in `parts` and takes the layers that it can start
    from (`Head.borrows`).

    Args:
        init: the trained model.
        init_parts: a row of `INIT_PARTS`.
        parts: encoder, decoder and head of the settings; see `depthany.models.model.build_model`.
        input_size: pixels of the shorter side in training.

    Raises:
        ValueError: the trained model cannot be loaded, or its decoder does not fit the encoder.
    """
    source, taken = init.load(), INIT_PARTS[init_parts]
    borrowed = _borrowed_layers(parts["head"], source.config["head"]) if "head" in taken else ()
    as_trained = [part for part in taken if not (part == "head" and borrowed)]
    model = build_model(
        **{**parts, **{part: source.config[part] for part in as_trained}}, input_size=input_size
    )
    for part in as_trained:
        if others := _differences(parts[part], source.config[part]):
            _tell_of_other(part, init, others, parts[part], source.config[part])
        getattr(model, part).load_state_dict(getattr(source, part).state_dict())
    for layer in borrowed:
        getattr(model.head, layer).load_state_dict(getattr(source.head, layer).state_dict())
    if at_random := [part for part in INIT_PARTS["all"] if part not in taken]:
        logger.info("%s from %s; %s at random", " and ".join(taken), init, " and ".join(at_random))
    if borrowed:
        logger.info(
            "the head %s starts from %s of the head %s of %s, the rest of it at random",
            parts["head"]["name"], ", ".join(borrowed), source.config["head"]["name"], init,
        )  # fmt: skip
    return model


def warn_of_unused_parts(weights: str, others: Set[str]) -> None:
    """Logs a warning if `model.weights` is a whole depth model, from which only the encoder was taken.

    Args:
        others: as `load_encoder_weights` returns them.
    """
    if others & DEPTH_PARTS:
        logger.warning(
            "warning: model.weights=%s is a whole depth model: only its encoder is taken; decoder and head "
            "start at random; model.init takes them, too",
            weights,
        )


def _tell_of_other(
    part: str, init: ModelSource, others: str, settings: Mapping[str, Any], trained: Mapping[str, Any]
) -> None:
    """Logs that a part is not as in the settings; an encoder that is another network is a warning."""
    if part == "encoder" and any(settings.get(key) != trained.get(key) for key in NETWORK):
        logger.warning(
            "warning: the encoder is that of %s, not that of model=: %s; model.init=null starts from the "
            "encoder of model=",
            init, others,
        )  # fmt: skip
    else:
        logger.info("the %s is that of %s: %s", part, init, others)


def require_chosen_head(
    model: DenseModel, head: Mapping[str, Any], init: Any, parts: str = "encoder+decoder"
) -> None:
    """Raises ValueError if the head came with `model.init` and is of another kind than the chosen one.

    Args:
        head: name and arguments of the head of the settings.
        init, parts: the setting, and the parts that any head can start from, for the message.
    """
    wanted, given = head["name"], model.config["head"]["name"]
    if wanted != given:
        group = given.removeprefix("metric_").removeprefix("classes_")
        raise ValueError(
            f"model.init={init} has the head {given}, and {wanted} was chosen, which takes no layer of it: "
            f"choose head={group}, or start a new head: model.init_parts={parts}"
        )


def _borrowed_layers(head: Mapping[str, Any], trained: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the layers of a trained head that a head of another kind, that of the settings, starts from."""
    wanted, given = head["name"], trained["name"]
    borrows: Mapping[str, tuple[str, ...]] = getattr(HEADS.get(wanted), "borrows", {})
    return () if wanted == given else borrows.get(given, ())


def _differences(settings: Mapping[str, Any], trained: Mapping[str, Any]) -> str:
    """Returns in words how the arguments of the trained part differ from the settings."""
    changed = {key: value for key, value in settings.items() if trained.get(key) != value}
    return " ".join(f"{key}={trained.get(key)} instead of {value}" for key, value in changed.items())
