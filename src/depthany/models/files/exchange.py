"""What the formats of others share."""

import torch
from torch import Tensor

from depthany.models.encoder import ENCODERS
from depthany.models.model import DepthModel


def encoder_of_width(width: int, where: str) -> str:
    """The encoder whose tokens are this wide, or a ValueError that lists the widths."""
    for name, spec in ENCODERS.items():
        if spec.embed_dim == width:
            return name
    widths = ", ".join(f"{name} {spec.embed_dim}" for name, spec in ENCODERS.items())
    raise ValueError(f"{where}: tokens are {width} wide, expected one of {widths}; it is no Depth Anything")


def plain_state(model: DepthModel) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().float().contiguous() for name, tensor in model.state_dict().items()}


def unused_weights(names: tuple[str, ...], model: DepthModel) -> dict[str, Tensor]:
    """Zeros for what the released files have and no output depends on."""
    width, features = model.encoder.spec.embed_dim, model.encoder.spec.dpt_features
    shapes = {"mask_token": (1, width), "weight": (features, features, 3, 3), "bias": (features,)}
    return {name: torch.zeros(shapes[name.rsplit(".", 1)[1]]) for name in names}
