"""Start the model from trained weights, whole or in part, and keep parts of it as they are."""

from typing import Any

from torch import nn

from depthany.models.files.loading import load_model
from depthany.models.model import DenseModel

INIT_PARTS = {
    "encoder": ("encoder",),
    "encoder+decoder": ("encoder", "decoder"),
    "all": ("encoder", "decoder", "head"),
}
FREEZE = {"none": (), "encoder": ("encoder",), "encoder+decoder": ("encoder", "decoder")}


def load_parts(model: DenseModel, init: str, init_parts: str) -> None:
    """Copies the weights of some parts of a trained model into `model`.

    Args:
        init: whatever `load_model` takes: a run, an official file, a Hugging Face folder or hub id.
        init_parts: a row of `INIT_PARTS`.

    Raises:
        ValueError: a part of the trained model is built differently; it is named with what to set.
    """
    source = load_model(init)
    for part in INIT_PARTS[init_parts]:
        own, theirs = getattr(model, part), getattr(source, part)
        different = _differences(model.config[part], source.config[part])
        # taps and the like do not matter to the encoder's own weights, but they do to what comes after it
        alone = init_parts == "encoder" and _same_shapes(own, theirs)
        if different and not alone:
            raise ValueError(_misfit(init, init_parts, part, source, different))
        own.load_state_dict(theirs.state_dict())


def _differences(own: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a part that differ, with the values of the trained model."""
    return {key: theirs.get(key) for key in own | theirs if own.get(key) != theirs.get(key)}


def _same_shapes(own: nn.Module, theirs: nn.Module) -> bool:
    shapes = [{name: tensor.shape for name, tensor in part.state_dict().items()} for part in (own, theirs)]
    return shapes[0] == shapes[1]


def _misfit(init: str, init_parts: str, part: str, source: DenseModel, different: dict[str, Any]) -> str:
    values = " ".join(f"model.{part}.{key}={'null' if v is None else v}" for key, v in different.items())
    what = f"its head predicts {source.quantity.describe()}" if part == "head" else f"its {part} differs"
    fewer = {"head": "encoder+decoder", "decoder": "encoder", "encoder": "encoder"}[part]
    way_out = f", or take less with model.init_parts={fewer}" if fewer != init_parts else ""
    return f"model.init={init} does not fit the model of the run, {what}: it has {values}; set that{way_out}"
