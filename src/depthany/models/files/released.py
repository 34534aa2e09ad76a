"""What the formats of the released code and of Hugging Face share: Depth Anything as published, no more."""

from typing import Any

import torch
from torch import Tensor

from depthany.models.dinov2 import SIZES, Dinov2
from depthany.models.dpt import DPT
from depthany.models.heads.head import Head
from depthany.models.heads.metric_bins import BinsHead
from depthany.models.heads.metric_sigmoid import MetricSigmoidHead
from depthany.models.heads.relative import RelativeHead
from depthany.models.model import DenseModel


def size_of_width(width: int, where: str) -> str:
    """Returns the size of DINOv2 whose tokens have this width; raises a `ValueError` if there is none."""
    for name, size in SIZES.items():
        if size.embed_dim == width:
            return name
    widths = ", ".join(f"{name} {size.embed_dim}" for name, size in SIZES.items())
    raise ValueError(f"{where}: tokens are {width} wide, expected one of {widths}: not a Depth Anything")


def require_depth_anything(
    model: DenseModel,
    format_name: str,
    heads: tuple[type[Head], ...] = (RelativeHead, MetricSigmoidHead),
) -> Dinov2:
    """Returns the encoder; raises a `ValueError` if another format cannot hold the model.

    Args:
        heads: heads that the format can hold.
    """
    if isinstance(model.head, BinsHead) and BinsHead not in heads:
        raise ValueError(
            f"format={format_name} cannot hold bins: transformers has ZoeDepth's head only on a neck of its "
            "own (readout of the CLS token, 16 pixels per patch): use format=onnx, or official for V1"
        )
    parts: dict[str, Any] = {"encoder": Dinov2, "decoder": DPT, "head": heads}
    for part, expected in parts.items():
        if not isinstance(getattr(model, part), expected):
            raise ValueError(
                f"format={format_name} holds only Depth Anything (DINOv2, DPT, a released head), but this "
                f"model has {part} {model.config[part]['name']}: use format=onnx"
            )
    assert isinstance(model.encoder, Dinov2)
    features, out_channels = model.encoder.dpt_widths
    if model.config["decoder"] != {"name": "dpt", "features": features, "out_channels": list(out_channels)}:
        raise ValueError(
            f"format={format_name} needs the decoder widths of {model.encoder.label}, but this model has "
            f"{model.config['decoder']}: use format=onnx"
        )
    return model.encoder


def plain_state(model: DenseModel) -> dict[str, Tensor]:
    """Returns all weights as contiguous float32 on the CPU."""
    return {name: tensor.detach().cpu().float().contiguous() for name, tensor in model.state_dict().items()}


def unused_weights(names: tuple[str, ...], encoder: Dinov2) -> dict[str, Tensor]:
    """Returns zeros for weights of the released files that no output depends on."""
    width, features = encoder.spec.embed_dim, encoder.spec.dpt_features
    shapes = {"mask_token": (1, width), "weight": (features, features, 3, 3), "bias": (features,)}
    return {name: torch.zeros(shapes[name.rsplit(".", 1)[1]]) for name in names}
