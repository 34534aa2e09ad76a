"""Files that the released code of Depth Anything loads."""

from pathlib import Path

import torch

from depthany.models.files.exchange import plain_state, unused_weights
from depthany.models.files.names import (
    OFFICIAL_UNUSED,
    has_swiglu,
    official_name,
)
from depthany.models.model import DepthModel
from depthany.system.files import write_atomically

OFFICIAL_ENCODERS = ("vits", "vitb", "vitl", "vitg")


def save_official(model: DepthModel, path: str | Path) -> Path:
    """Write the `.pth` state dict that the released code of the model's generation loads.

    Give it the released file's name: for V2 `depth_anything_v2_vits.pth`, metric
    `depth_anything_v2_metric_hypersim_vits.pth` (its `run.py` takes --max-depth), for V1
    `depth_anything_vits14.pth`. Positions are interpolated there as by pos_interpolation "official".

    Raises:
        ValueError: it cannot be written, or the encoder is none of vits, vitb, vitl and vitg.
    """
    path = Path(path)
    encoder = model.config["encoder"]
    if encoder not in OFFICIAL_ENCODERS:
        raise ValueError(
            f"the official code has no {encoder}: only {', '.join(OFFICIAL_ENCODERS)}; "
            "save it as a Hugging Face model or ONNX instead"
        )
    swiglu = has_swiglu(model.encoder.spec)
    state = {official_name(name, swiglu): tensor for name, tensor in plain_state(model).items()}
    state |= unused_weights(OFFICIAL_UNUSED, model)
    write_atomically(path, lambda partial: torch.save(state, partial))
    return path
