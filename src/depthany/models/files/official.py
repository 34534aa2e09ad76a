"""Files that the released code of Depth Anything loads."""

from pathlib import Path

import torch

from depthany.models.files.names import (
    OFFICIAL_UNUSED,
    has_swiglu,
    official_name,
)
from depthany.models.files.released import plain_state, require_depth_anything, unused_weights
from depthany.models.model import DenseModel
from depthany.system.files import write_atomically

OFFICIAL_SIZES = ("vits", "vitb", "vitl", "vitg")


def save_official(model: DenseModel, path: str | Path) -> Path:
    """Writes the `.pth` state dict that the released code of the model's generation loads.

    Give it the released file's name: for V2 `depth_anything_v2_vits.pth`, metric
    `depth_anything_v2_metric_hypersim_vits.pth` (its `run.py` takes --max-depth), for V1
    `depth_anything_vits14.pth`. Positions are interpolated there as by pos_interpolation "official".

    Raises:
        ValueError: it cannot be written, or the encoder is none of vits, vitb, vitl and vitg.
    """
    path = Path(path)
    encoder = require_depth_anything(model, "official")
    if encoder.label not in OFFICIAL_SIZES:
        raise ValueError(
            f"the official code has no {encoder.label}: only {', '.join(OFFICIAL_SIZES)}; "
            "save it as a Hugging Face model or ONNX instead"
        )
    swiglu = has_swiglu(encoder.spec)
    state = {official_name(name, swiglu): tensor for name, tensor in plain_state(model).items()}
    state |= unused_weights(OFFICIAL_UNUSED, encoder)
    write_atomically(path, lambda partial: torch.save(state, partial))
    return path
