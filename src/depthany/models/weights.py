"""Weights from files: safe reading, strict loading, and DINOv2 weights for the encoder.

DINOv2 releases and timm share their parameter names but for the SwiGLU of ViT-g (w12, w3 against fc1, fc2)
and the `mask_token`, which only pre-training uses.
"""

import logging
import math
import pickle
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import huggingface_hub
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from depthany.models.encoder import ENCODERS, Encoder, encoder_spec, resize_pos_embed

log = logging.getLogger(__name__)
LISTED = 10  # names of mismatched keys in an error message
WRAPPERS = ("state_dict", "model", "teacher")  # entries under which training codes keep the weights
OFFICIAL_FILES = {name: f"dinov2_{name}14_pretrain.pth" for name in ("vits", "vitb", "vitl", "vitg")}
PROBE_SECONDS = 5.0  # wait for the download host before it counts as unreachable


class DownloadError(ConnectionError, RuntimeError):
    """Weights could not be downloaded; what the user can mend, hence an OSError too."""


def load_pretrained_encoder(
    name: str, path: str | Path | None = None, taps: str = "v1", pos_interpolation: str = "official"
) -> Encoder:
    """An encoder with DINOv2 weights from a local file or, where `path` is None, downloaded through timm."""
    encoder = Encoder(name, taps, pos_interpolation)
    load_encoder_weights(encoder, path)
    return encoder


def load_encoder_weights(encoder: Encoder, path: str | Path | None) -> None:
    """Load DINOv2 weights into an encoder, strictly.

    Args:
        path: an official DINOv2 `.pth`, the same with timm's names (`.pth` or `.safetensors`), float16 or
            float32, bare or as part of a larger checkpoint; or None to download the official weights through
            timm.
    """
    path = _download(encoder.name) if path is None else Path(path)
    state = _dinov2_to_timm(_unwrap(read_tensors(path), path))
    _check_size(state, encoder, path)
    grid, own_grid = _grid(state["pos_embed"]), _grid(encoder.pos_embed)
    if grid != own_grid:
        log.info(
            "%s: position embeddings resampled from %d x %d to %d x %d", path, grid, grid, own_grid, own_grid
        )
        state["pos_embed"] = resize_pos_embed(state["pos_embed"].float(), own_grid, own_grid, "size")
    load_strictly(encoder, state, str(path))


def read_tensors(path: str | Path) -> dict[str, Any]:
    """Content of a `.safetensors` or torch file; one that could run code or is broken is refused."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; pass the path of a .safetensors, .pt or .pth file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); copy it again") from None
    except pickle.UnpicklingError:
        raise ValueError(f"{path} is damaged or could run code: expected plain tensors; not opened") from None
    except (RuntimeError, EOFError, OSError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(f"{path} is not a whole torch file ({reason}); copy it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a dict of tensors")
    return content


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy a state dict into a module; a ValueError lists the names and shapes that do not match."""
    own = module.state_dict()
    wrong = {
        "missing": [name for name in own if name not in state],
        "left over": [name for name in state if name not in own],
        "other shape": [
            f"{name} {tuple(state[name].shape)} for {tuple(tensor.shape)}"
            for name, tensor in own.items()
            if name in state and state[name].shape != tensor.shape
        ],
    }
    lists = [f"{len(names)} {kind}: {_first(names)}" for kind, names in wrong.items() if names]
    if lists:
        raise ValueError(f"{source} does not fit {type(module).__name__}; {'; '.join(lists)}")
    module.load_state_dict(state)


def _first(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (" ..." if len(names) > LISTED else "")


def _unwrap(content: Mapping[str, Any], path: str | Path) -> dict[str, Tensor]:
    """The encoder's part of a checkpoint: inside known wrappers, what shares the prefix of `cls_token`."""
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    content = {str(name): tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
    prefixes = [name.removesuffix("cls_token") for name in content if re.search(r"(^|\.)cls_token$", name)]
    if len(prefixes) != 1:
        entries = _first(list(content)) or "no tensor"
        raise ValueError(f"{path} has {len(prefixes)} `cls_token`s, expected one encoder; it has: {entries}")
    prefix = prefixes[0]
    return {name.removeprefix(prefix): tensor for name, tensor in content.items() if name.startswith(prefix)}


def _dinov2_to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict with timm's names from one with DINOv2's or timm's."""
    renamed = {
        name.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2."): tensor
        for name, tensor in state.items()
    }
    renamed.pop("mask_token", None)
    return renamed


def _check_size(state: Mapping[str, Tensor], encoder: Encoder, path: str | Path) -> None:
    """Refuse, by name, the weights of another size and those with register tokens."""
    if "register_tokens" in state or "reg_token" in state:
        raise ValueError(f"{path} is a DINOv2 with registers; Depth Anything needs the one without")
    width = state["cls_token"].shape[-1]
    if width != encoder.spec.embed_dim:
        names = [name for name, spec in ENCODERS.items() if spec.embed_dim == width]
        seems = f"seems to be {names[0]}" if names else "is no known size"
        raise ValueError(
            f"{path} is {width} wide and {seems}; {encoder.name} is {encoder.spec.embed_dim} wide: "
            f"set the encoder to the file's size or pass another file"
        )
    if "pos_embed" not in state:
        raise ValueError(f"{path} has no `pos_embed`; expected DINOv2 weights")


def _grid(pos_embed: Tensor) -> int:
    """Side g of the square patch grid of a position embedding [1 1+g*g c]."""
    return math.isqrt(pos_embed.shape[1] - 1)


def _download(name: str) -> Path:
    """Local path of the official DINOv2 weights from timm's hub repository, downloaded at the first call."""
    spec = encoder_spec(name)
    if name not in OFFICIAL_FILES:
        raise ValueError(f"{name} has no published weights; pass a local file with model.weights=PATH")
    config = timm.get_pretrained_cfg(spec.timm_name)
    assert config is not None
    assert config.hf_hub_id is not None
    try:
        return Path(_hub_file(config.hf_hub_id, "model.safetensors"))
    except Exception as error:  # hub, socket and http errors share no base; each ends here, with its cause
        reason = str(error).strip().split("\n", 1)[0]
        raise DownloadError(
            f"could not download the weights of {name} ({type(error).__name__}: {reason}); "
            f"offline, pass a local file: model.weights=/path/to/{OFFICIAL_FILES[name]}"
        ) from error


def _hub_file(repository: str, file_name: str) -> str:
    """Path of a file of the hub in its local cache; the network is tried only if it is not there.

    The hub's client repeats a failing request for most of a minute, so an unreachable host is found out
    first.
    """
    cached = huggingface_hub.try_to_load_from_cache(repository, file_name)
    if isinstance(cached, str):
        return cached
    host = urlsplit(huggingface_hub.constants.ENDPOINT)
    if not (huggingface_hub.constants.HF_HUB_OFFLINE or getproxies()):
        port = host.port or (80 if host.scheme == "http" else 443)
        socket.create_connection((host.hostname or "", port), timeout=PROBE_SECONDS).close()
    return huggingface_hub.hf_hub_download(repository, file_name)
