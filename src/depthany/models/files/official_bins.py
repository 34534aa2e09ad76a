"""Metric files with bins: those of Depth Anything V1, and of ZoeDepth's code on a Depth Anything core."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from depthany.models.dinov2 import SIZES, Dinov2
from depthany.models.files.found import Found
from depthany.models.files.names import OFFICIAL_UNUSED, has_swiglu, official_bins_name
from depthany.models.files.released import plain_state, size_of_width, unused_weights
from depthany.models.heads.metric_bins_nk import DOMAINS, MetricBinsNKHead
from depthany.models.model import DenseModel

CORE = "core.core."
INPUT_SIZE = 392  # V1's code trains at 392x518, to which 480x640 comes with its aspect ratio kept, too
# Released name without suffix -> metres at the far end of its training labels, and training set.
RELEASED = {
    "depth_anything_metric_depth_indoor": (10.0, "nyuv2"),
    "depth_anything_metric_depth_outdoor": (80.0, "kitti"),
}
ROWS: dict[
    tuple[int, ...], tuple[str, str]
] = {  # outputs of the attractors of the four levels -> head and kind of bins
    (16, 8, 4, 1): ("metric_bins", "softplus"),
    (32, 16, 8, 2): ("metric_bins", "normed"),
    (16, 16, 16, 16): ("metric_bins_nk", "softplus"),
    (32, 32, 32, 32): ("metric_bins_nk", "normed"),
}
# Arguments of the released configurations, which no shape of a weight shows.
RELEASED_ARGUMENTS = {
    "attractor_alpha": 300.0,
    "attractor_gamma": 2,
    "min_depth_m": 1e-3,
    "min_temp": 0.0212,
    "max_temp": 50.0,
}
BUFFERS = re.compile(r"log_binomial_transform\.(k_idx|K_minus_1)$")  # constants that the files carry
_LOG_BINOMIAL = re.compile(r"conditional_log_binomial\.(?:(\w+)\.)?mlp\.0\.weight")


def has_bins(state: Mapping[str, Tensor]) -> bool:
    """Whether `state`, tensors by their released names, is that of a metric model with bins."""
    return any(_LOG_BINOMIAL.fullmatch(name) for name in state)


def read_bins(path: Path, state: Mapping[str, Tensor], taps: str | None, max_depth_m: float | None) -> Found:
    """Returns what a metric file with bins holds.

    Args:
        state: tensors by their released names.
        taps: "v1" or "v2"; the default is V1, the only generation that was released with bins.
        max_depth_m: metres at the far end of the range, if the file is not a released one.

    Raises:
        ValueError: its core is not a Depth Anything, or the kind of its bins is unknown.
    """
    head = _head_of(path, state)
    if f"{CORE}pretrained.cls_token" not in state:
        kind = f"{head['bin_centers']} bins" + (
            f" of {' and '.join(head['domains'])}" if "domains" in head else ""
        )
        raise ValueError(
            f"{path} has ZoeDepth's head ({kind}) on a core that is not a Depth Anything (MiDaS with BEiT "
            "in released files), whose encoder is not ours: use transformers' ZoeDepthForDepthEstimation"
        )
    size = size_of_width(state[f"{CORE}pretrained.cls_token"].shape[-1], str(path))
    metres, trained_on = RELEASED.get(path.stem, (max_depth_m, None))
    if head["name"] == "metric_bins":
        if metres is None and head["bin_centers"] == "normed":
            raise ValueError(
                f"{path} has normed bins, which fill a range that the file does not say: pass max_depth=80 "
                "for KITTI, or the metres that it was trained with"
            )
        head = {**head, "max_depth_m": metres}
    config: dict[str, Any] = {
        "encoder": {"name": "dinov2", "size": size, "taps": taps or "v1", "pos_interpolation": "official"},
        "head": head,
        "input_size": INPUT_SIZE,
    }
    if trained_on is not None:
        config["trained_on"] = {"sets": [trained_on]}
    unused = {CORE + name for name in OFFICIAL_UNUSED}
    used = {name: t for name, t in state.items() if name not in unused and not BUFFERS.search(name)}
    return Found(path, config, used, partial(official_bins_name, swiglu=has_swiglu(SIZES[size])))


def _head_of(path: Path, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns name and arguments of the head, without ranges, from names and shapes."""
    domains = [match[1] for name in state if (match := _LOG_BINOMIAL.fullmatch(name)) and match[1]]
    prefix = f"{domains[0]}." if domains else ""
    seeds = f"seed_bin_regressors.{prefix}" if domains else "seed_bin_regressor."
    named = {
        **{f"attractors.{i}": f"attractors.{prefix}{i}._net.2.weight" for i in range(4)},
        "n_bins": f"{seeds}_net.2.weight",
        "embed_dim": "seed_projector._net.2.weight",
    }
    if missing := [name for name in named.values() if name not in state]:
        raise ValueError(f"{path} has the distribution of ZoeDepth's bins, but no {missing[0]}")
    rows = {name: state[weight].shape[0] for name, weight in named.items()}
    counts = tuple(rows[f"attractors.{i}"] for i in range(4))
    head, kind = ROWS.get(counts, ("", ""))
    if (head == "metric_bins_nk") != bool(domains) or not head:
        known = ", ".join(f"{rows} ({name}, {kind})" for rows, (name, kind) in ROWS.items())
        raise ValueError(f"{path}: its attractors have {counts} outputs; expected one of {known}")
    found = {"name": head, "bin_centers": kind, "n_bins": rows["n_bins"], "embed_dim": rows["embed_dim"]}
    if not domains:
        return found
    if unknown := [name for name in domains if name not in DOMAINS]:
        raise ValueError(
            f"{path}: the range of its domain {unknown[0]} is not known; known: {', '.join(DOMAINS)}"
        )
    order = [name for name in DOMAINS if name in domains]  # that of the router's logits
    return {**found, "domains": {name: DOMAINS[name] for name in order}}


def bins_stem(model: DenseModel) -> str | None:
    """Returns the released name, without suffix, of a model with bins; None for another size or range."""
    metres = model.config["head"].get("max_depth_m")
    same = [stem for stem, (end, _) in RELEASED.items() if end == metres]
    return same[0] if same and model.encoder.label == "vitl" else None


def check_bins(model: DenseModel) -> None:
    """Raises a ValueError if the code of V1's metric models, which has ZoeDepth's head, has no such model."""
    head, taps = model.config["head"], model.config["encoder"]["taps"]
    if taps != "v1":
        raise ValueError(f"the official code has bins only with taps=v1, but this model has taps={taps}")
    released: dict[str, Any] = {"n_bins": 64, "embed_dim": 128, **RELEASED_ARGUMENTS}
    is_nk = isinstance(model.head, MetricBinsNKHead)
    released |= {"attractors": [16] * 4, "domains": DOMAINS} if is_nk else {"attractors": [16, 8, 4, 1]}
    for name, value in released.items():
        if head[name] != value:
            raise ValueError(
                f"the official code has only {name}={value}, but this model has {head[name]}: use format=onnx"
            )


def bins_state(model: DenseModel, encoder: Dinov2) -> dict[str, dict[str, Tensor]]:
    """Returns the content of a metric file of V1: under "model" the weights and the constants of the bins."""
    swiglu = has_swiglu(encoder.spec)
    state = {official_bins_name(name, swiglu): tensor for name, tensor in plain_state(model).items()}
    state |= {CORE + name: tensor for name, tensor in unused_weights(OFFICIAL_UNUSED, encoder).items()}
    n_bins = model.config["head"]["n_bins"]
    for name in list(state):
        if match := _LOG_BINOMIAL.fullmatch(name):
            prefix = match[0].removesuffix("mlp.0.weight") + "log_binomial_transform"
            state[f"{prefix}.k_idx"] = torch.arange(n_bins).view(1, n_bins, 1, 1)
            state[f"{prefix}.K_minus_1"] = torch.tensor([n_bins - 1.0]).view(1, 1, 1, 1)
    return {"model": state}
