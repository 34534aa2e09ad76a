"""Loads a depth model from a file, a folder or a hub repository."""

import json
import logging
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from depthany.models.dinov2 import SIZES
from depthany.models.files.dinov2_linear import is_dinov2_linear, read_dinov2_linear
from depthany.models.files.found import Found, UnknownGeneration
from depthany.models.files.huggingface import PREPROCESSOR_NAME, arguments_from_huggingface
from depthany.models.files.locate import locate
from depthany.models.files.mobilenet_v2 import MODEL_TYPE as MOBILENET_V2
from depthany.models.files.mobilenet_v2 import is_mobilenet_v2, read_mobilenet_v2
from depthany.models.files.names import (
    HF_UNUSED,
    OFFICIAL_UNUSED,
    has_swiglu,
    huggingface_name,
    join_qkv,
    official_name,
    version_1_name,
)
from depthany.models.files.official_bins import has_bins, read_bins
from depthany.models.files.released import size_of_width
from depthany.models.files.torchvision_deeplab import is_torchvision_deeplab, read_torchvision_deeplab
from depthany.models.files.weights import listed, load_strictly, read_tensors, unwrap, weights_file
from depthany.models.model import (
    CONFIG_NAME,
    FORMAT,
    FORMAT_VERSION,
    WEIGHTS_NAME,
    DenseModel,
    build_model,
    depth_anything_config,
)
from depthany.models.output import Quantity
from depthany.system.plugins import missing_plugins

# V1 and V2, relative and sigmoid files are alike inside; only the name of the file tells which it is.
OFFICIAL_FILES: tuple[tuple[str, str, float | None, str | None], ...] = (  # ..., metres, training set
    (r"depth_anything_vit[sblg]14", "v1", None, None),
    (r"depth_anything_v2_vit[sblg]", "v2", None, None),
    (r"depth_anything_v2_metric_hypersim_vit[sblg]", "v2", 20.0, "hypersim"),
    (r"depth_anything_v2_metric_vkitti_vit[sblg]", "v2", 80.0, "vkitti2"),
)

MAX_DEPTH_IS = {  # head -> why max_depth of a trained model is not for the user to choose
    "metric_sigmoid": "; it multiplies the output of the trained model, so another value would stretch all "
    "depths instead of limiting them",
    "metric_bins": "; it is the range that the model was trained on, and another value would not change it",
    "metric_bins_nk": "; each of its domains has the range that it was trained on",
}
METRIC_RANGES = "max_depth=20 (metres: Hypersim, indoors) or 80 (Virtual KITTI, outdoors)"
log = logging.getLogger(__name__)


def load_model(
    source: str | Path,
    device: str | torch.device = "cpu",
    taps: str | None = None,
    max_depth_m: float | None = None,
) -> DenseModel:
    """Loads the model of a file, a folder or a hub repository, in eval mode, float32.

    Args:
        source: a run directory of ours, its `model.safetensors`, or a training checkpoint `.pt`, whose
            averaged weights are used if it has them; an official Depth Anything V1 or V2 `.pth`, relative
            or metric; a metric `.pt` of V1, with bins; a Hugging Face folder of
            `DepthAnythingForDepthEstimation` or `MobileNetV2ForSemanticSegmentation`, or its id on the hub
            ("organisation/name"); a file of torchvision's `deeplabv3_resnet50` or `deeplabv3_resnet101`;
            a linear segmentation head that DINOv2 released.
        taps: "v1" or "v2", for an official file whose name does not say its generation.
        max_depth_m: metres, for an official metric file whose name does not say them. Relative and metric
            files look alike inside; a warning is logged if the model's maps are constant.

    Raises:
        FileNotFoundError: there is no such source.
        DownloadError: the source is not local, and the hub cannot be reached or has no such model.
        ValueError: the source is damaged, could run code, is not a model, holds NaN or infinity, has names or
            shapes that do not fit, or contradicts `taps` or `max_depth_m`.
    """
    found = find_model(source, taps, max_depth_m)
    model = _build(found)
    model.to(device)
    load_strictly(model, found.state, str(found.where), found.name_of)
    model.eval()
    if not found.is_named:
        _warn_of_constant_maps(model, found.where)
    return model


@torch.inference_mode()
def _warn_of_constant_maps(model: DenseModel, where: Path) -> None:
    """Logs a warning if the maps of four test images are constant, as those of a metric file read as a
    relative one: a ReLU then gets the sigmoid's input, which is below 0 nearer than half of `max_depth`.
    """
    multiple, weights = model.preprocessing.multiple, next(model.parameters())
    coarse = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    image = F.interpolate(coarse, scale_factor=multiple)  # [4 3 h w], a colour for each cell
    low, high = model(image.to(weights)).map.flatten(1).aminmax(dim=1)  # [4]
    if (low == high).all():
        why = f"if it is a metric file, pass {METRIC_RANGES}; if it is a relative one, its training has died"
        if model.quantity.is_metric:
            why = "if it is a relative file, leave max_depth out"
        log.warning("warning: %s predicts %g everywhere, on every test image: %s", where, low[0].item(), why)


def find_model(source: str | Path, taps: str | None = None, max_depth_m: float | None = None) -> Found:
    """Reads a source without building its model; see `load_model`."""
    found = _read(locate(source), taps, max_depth_m)
    encoder, head = found.config["encoder"], found.config.get("head", {})
    known = {"taps": encoder.get("taps"), "max_depth": head.get("max_depth_m")}
    for key, given in (("taps", taps), ("max_depth", max_depth_m)):
        if given is not None and given != known[key]:
            why = MAX_DEPTH_IS.get(head.get("name", ""), "") if key == "max_depth" else ""
            raise ValueError(
                f"{found.where} is a model with {key}={known[key]}, not {given}: leave {key} out{why}"
            )
    return found


def _read(path: Path, taps: str | None, max_depth_m: float | None) -> Found:
    if _model_type(path / CONFIG_NAME) == "zoedepth":
        raise ValueError(
            f"{path} is a ZoeDepth of transformers, whose encoder and neck (readout of the CLS token, 16 "
            "pixels per patch) are not ours: use transformers' ZoeDepthForDepthEstimation"
        )
    if path.is_dir() and not _is_huggingface(path / CONFIG_NAME):
        path = _finished(path)
    path = weights_file(path)
    content, config_path = read_tensors(path), path.with_name(CONFIG_NAME)
    state = unwrap(content)
    if {"model", "model_config"} <= content.keys():
        averaged = content.get("ema", {})  # of a run that averages its weights, which are the better ones
        return _own(path, content["model_config"], state | averaged, content)
    if has_bins(state):
        return read_bins(path, state, taps, max_depth_m)
    if all(any(name.startswith(part) for name in state) for part in ("pretrained.", "depth_head.")):
        return _official(path, state, taps, max_depth_m)
    if is_dinov2_linear(state):
        return read_dinov2_linear(path, state)
    if is_torchvision_deeplab(state):
        return read_torchvision_deeplab(path, state)
    if config_path.is_file() and is_mobilenet_v2(config := _read_json(config_path)):
        return read_mobilenet_v2(path, config, _preprocessor_of(path), state)
    if _is_huggingface(config_path):
        return _huggingface(path, state)
    if path.suffix == ".safetensors":
        config = _own_config(config_path)
        return _own(path, config["model"], state, config)
    raise ValueError(
        f"{path} is not a depth model: expected entries 'model' and 'model_config' (a checkpoint of ours) or "
        f"weights pretrained.* and depth_head.* (official); it has: {listed([str(key) for key in content])}"
    )


def _own(
    path: Path, config: Mapping[str, Any], state: Mapping[str, Tensor], about: Mapping[str, Any]
) -> Found:
    """Returns what a file of ours holds, of version 2 or 1.

    Args:
        config: arguments of `build_model`.
        about: what else the file says, with entries "quantity" and "plugins" in version 2.
    """
    if isinstance(config.get("encoder"), Mapping):
        return Found(path, config, state, quantity=about.get("quantity"), plugins=about.get("plugins", ()))
    renamed = {"encoder": "size", "max_depth": "max_depth_m"}  # version 1: Depth Anything alone, in one row
    arguments = {"taps": "v1", **{renamed.get(key, key): value for key, value in config.items()}}
    try:
        return Found(path, depth_anything_config(**arguments), state, version_1_name)
    except TypeError as error:
        raise ValueError(f"{path}: the model's settings {dict(config)} are not known: {error}") from None


def _official(path: Path, state: Mapping[str, Tensor], taps: str | None, max_depth_m: float | None) -> Found:
    if "pretrained.cls_token" not in state:
        raise ValueError(f"{path} has no pretrained.cls_token: expected a whole official Depth Anything file")
    size = size_of_width(state["pretrained.cls_token"].shape[-1], str(path))
    is_named, about = False, {}
    for pattern, generation, metres, trained in OFFICIAL_FILES:
        if re.fullmatch(pattern, path.stem):
            taps, max_depth_m, is_named = generation, metres, True
            about = {} if trained is None else {"trained_on": {"sets": [trained]}}
    if taps is None:
        raise UnknownGeneration(
            f"{path}: its name is not an official one (such as depth_anything_vits14.pth or "
            "depth_anything_v2_vits.pth), and V1 and V2 files look alike inside: pass taps=v1 or taps=v2, "
            f"and for a metric file also {METRIC_RANGES}"
        )
    return Found(
        path,
        {**depth_anything_config(size, taps, max_depth_m=max_depth_m), **about},
        {name: tensor for name, tensor in state.items() if name not in OFFICIAL_UNUSED},
        partial(official_name, swiglu=has_swiglu(SIZES[size])),
        is_named=is_named,
    )


def _huggingface(path: Path, state: Mapping[str, Tensor]) -> Found:
    config_path = path.with_name(CONFIG_NAME)
    arguments = arguments_from_huggingface(_read_json(config_path), _preprocessor_of(path), str(config_path))
    used = {name: tensor for name, tensor in state.items() if name not in HF_UNUSED}
    swiglu = has_swiglu(SIZES[arguments["size"]])
    return Found(
        path, depth_anything_config(**arguments), join_qkv(used), partial(huggingface_name, swiglu=swiglu)
    )


def _preprocessor_of(path: Path) -> dict[str, Any]:
    """Returns the settings of the preprocessor beside the weights in a folder, {} if there are none."""
    preprocessor = path.with_name(PREPROCESSOR_NAME)
    return _read_json(preprocessor) if preprocessor.is_file() else {}


def _finished(folder: Path) -> Path:
    """Returns the weights in a run directory; the error for an unfinished run lists its checkpoints."""
    if (folder / WEIGHTS_NAME).is_file():
        return folder / WEIGHTS_NAME
    checkpoints = sorted(str(path) for path in folder.rglob("*.pt"))
    if checkpoints:
        raise FileNotFoundError(
            f"{folder} is a run that is not finished: no {WEIGHTS_NAME} yet; resume it, or load one of its "
            f"{len(checkpoints)} checkpoints: {', '.join(checkpoints[-3:])}"
        )
    raise FileNotFoundError(
        f"{folder} has neither {WEIGHTS_NAME} nor a .pt checkpoint; pass another directory"
    )


def _is_huggingface(config_path: Path) -> bool:
    return _model_type(config_path) in ("depth_anything", MOBILENET_V2)


def _model_type(config_path: Path) -> str | None:
    """Returns the kind of model that a `config.json` of transformers names; None if there is none."""
    return _read_json(config_path).get("model_type") if config_path.is_file() else None


def _own_config(path: Path) -> dict[str, Any]:
    """Returns a `config.json` of ours, checked."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; keep {CONFIG_NAME} beside {WEIGHTS_NAME}")
    config = _read_json(path)
    if config.get("format") != FORMAT or "model" not in config:
        raise ValueError(f"{path} is not a depthany model: expected format {FORMAT!r} and an entry 'model'")
    if config.get("version") not in (1, FORMAT_VERSION):
        raise ValueError(
            f"{path} has version {config.get('version')!r}, expected {FORMAT_VERSION} or 1: update depthany"
        )
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); copy it again") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a {type(content).__name__}, expected an object with the model's settings"
        )
    return content


def _build(found: Found) -> DenseModel:
    """Builds the model of a source, without weights where none have to be computed."""
    try:
        with torch.device("meta"):  # spends no time on random weights that are replaced at once
            model = build_model(**found.config)
        names = model.state_dict().keys()
        if any(name not in names for name, _ in model.named_buffers()):
            model = build_model(**found.config)  # buffers that no file holds are computed by the constructor
        else:
            model.to_empty(device="cpu")
    except (TypeError, KeyError, ValueError) as error:
        hint = ""
        if missing := missing_plugins(found.plugins):
            hint = f"; it was trained with plugins=[{','.join(missing)}]: pass them, if its parts are theirs"
        raise ValueError(f"{found.where} cannot be built: {error}{hint}") from None
    if found.quantity is not None and Quantity.from_config(found.quantity) != model.quantity:
        raise ValueError(
            f"{found.where} predicts {Quantity.from_config(found.quantity).describe()}, but its head "
            f"{found.config['head']} predicts {model.quantity.describe()} here: use the code that trained it"
        )
    return model
