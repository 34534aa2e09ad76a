"""Files that the released code of Depth Anything loads."""

import re
from pathlib import Path
from typing import Any

import torch

from depthany.models.dinov2 import Dinov2
from depthany.models.files.names import (
    OFFICIAL_UNUSED,
    has_swiglu,
    official_name,
)
from depthany.models.files.official_bins import bins_state, bins_stem, check_bins
from depthany.models.files.released import plain_state, require_depth_anything, unused_weights
from depthany.models.heads.metric_bins import BinsHead
from depthany.models.heads.metric_sigmoid import MetricSigmoidHead
from depthany.models.heads.relative import RelativeHead
from depthany.models.model import DenseModel
from depthany.system.files import write_atomically

OFFICIAL_SIZES = ("vits", "vitb", "vitl", "vitg")
METRIC_NAMES = {20.0: "hypersim", 80.0: "vkitti"}  # metres at the far end -> part of the released name
RELEASED_NAME = re.compile(r"depth_anything_((v2_(metric_\w+_)?)?vit[sblg](14)?|metric_depth_(in|out)door)")


def save_official(model: DenseModel, path: str | Path) -> Path:
    """Writes the `.pth` state dict that the released code of the model's generation loads; for a model
    with bins, the file that the code of V1's metric models loads.

    `released_stem` returns the name that this code expects. Positions are interpolated there as by
    pos_interpolation "official".

    Raises:
        ValueError: it cannot be written, or the released code has no such model.
    """
    path = Path(path)
    encoder = check_official(model, path)
    content: dict[str, Any]
    if isinstance(model.head, BinsHead):
        content = bins_state(model, encoder)
    else:
        swiglu = has_swiglu(encoder.spec)
        content = {official_name(name, swiglu): tensor for name, tensor in plain_state(model).items()}
        content |= unused_weights(OFFICIAL_UNUSED, encoder)
    write_atomically(path, lambda partial: torch.save(content, partial))
    return path


def released_stem(model: DenseModel) -> str | None:
    """Returns the released name, without suffix, of a model of this size, generation and range.

    For V1 `depth_anything_vits14`, for V2 `depth_anything_v2_vits`, metric
    `depth_anything_v2_metric_hypersim_vits`; None for a metric model of another range, whose file the
    released `run.py` takes under any name (--load-from, --max-depth).
    """
    if isinstance(model.head, BinsHead):
        return bins_stem(model)
    size, max_depth_m = model.encoder.label, model.quantity.max_depth_m
    if max_depth_m is not None:
        place = METRIC_NAMES.get(max_depth_m)
        return place and f"depth_anything_v2_metric_{place}_{size}"
    is_v1 = model.config["encoder"]["taps"] == "v1"
    return f"depth_anything_{size}14" if is_v1 else f"depth_anything_v2_{size}"


def check_official(model: DenseModel, path: Path) -> Dinov2:
    """Returns the encoder of a model that the released code can load from `path`.

    Raises:
        ValueError: the released code has no such model, or the name of the file says that it holds another.
    """
    encoder = require_depth_anything(model, "official", (RelativeHead, MetricSigmoidHead, BinsHead))
    taps, max_depth_m = model.config["encoder"]["taps"], model.quantity.max_depth_m
    if encoder.label not in OFFICIAL_SIZES:
        raise ValueError(
            f"the official code has no {encoder.label}: only {', '.join(OFFICIAL_SIZES)}; "
            "use format=huggingface, onnx or torchscript"
        )
    if isinstance(model.head, BinsHead):
        check_bins(model)
    elif max_depth_m is not None and taps != "v2":
        raise ValueError(
            f"the official code has no metric model with taps={taps}, only with v2: use format=huggingface, "
            "onnx or torchscript"
        )
    stem = released_stem(model)
    if RELEASED_NAME.fullmatch(path.stem) and path.stem != stem:
        what = f"{encoder.label} with taps={taps} that predicts {model.quantity.describe()}"
        remedy = f"pass out={path.with_name(f'{stem}.pth')}" if stem else "pass a name of your own"
        raise ValueError(
            f"out={path} is the released name of another model, but this one is {what}: {remedy}"
        )
    return encoder
