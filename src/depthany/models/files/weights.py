"""Weights from files: safe reading, strict loading, and pre-trained weights for the encoder."""

import hashlib
import logging
import math
import pickle
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from depthany.models.atrous_encoder import AtrousEncoder
from depthany.models.dinov2 import SIZES, Dinov2, resize_pos_embed, size_of
from depthany.models.encoder import Encoder
from depthany.models.files.hub import hub_file
from depthany.models.files.mobilenet_v2 import is_google_trunk, trunk_of
from depthany.models.files.names import MASK_TOKENS, dinov2_name, hf_dinov2_name, join_qkv, version_1_name
from depthany.models.files.trunk_settings import check_trunk_settings
from depthany.models.timm_encoder import TimmEncoder

log = logging.getLogger(__name__)
LISTED = 10  # names of mismatched keys in an error message
WRAPPERS = ("state_dict", "model", "teacher")  # entries under which training codes keep the weights
OFFICIAL_FILES = {name: f"dinov2_{name}14_pretrain.pth" for name in ("vits", "vitb", "vitl", "vitg")}
PREFIXES = ("module.", "model.", "_orig_mod.")  # put before every name by DDP, Lightning and torch.compile
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # of a Hugging Face folder


def load_encoder_weights(encoder: Encoder, path: str | Path | None) -> set[str]:
    """Loads pre-trained weights into an encoder, strictly.

    Returns:
        The first parts of the names of all other weights in the file, which are not used, such as depth_head
        of a whole depth model.

    Args:
        encoder: a `Dinov2`, a `TimmEncoder` or an `AtrousEncoder`.
        path: for a `Dinov2` an official DINOv2 `.pth`, the same with timm's names (`.pth` or `.safetensors`),
            a Hugging Face `Dinov2Model` folder or its file; for the others a file with timm's names or its
            folder, for a MobileNetV2 also one of transformers. float16 or float32. None: from the hub's local
            cache, else downloaded.

    Raises:
        FileNotFoundError: there is no such file.
        DownloadError: the weights are not in the cache, and the hub cannot be reached.
        ValueError: the file is damaged, of another size or architecture, or holds NaN; Google's MobileNetV2
            was trained with other settings than the encoder's; or no rule is known for the encoder.
    """
    if isinstance(encoder, TimmEncoder | AtrousEncoder):
        _load_timm(encoder, _from_hub(encoder.label) if path is None else weights_file(Path(path)))
        return set()
    if isinstance(encoder, Dinov2):
        return _load_dinov2(encoder, _download(encoder.label) if path is None else weights_file(Path(path)))
    raise ValueError(f"no pre-trained weights are known for {encoder.label}: pass model.pretrained=false")


def _load_timm(encoder: TimmEncoder | AtrousEncoder, path: Path) -> None:
    """Loads a state dict of the whole timm model; skips by name what the encoder leaves out of the model."""
    unused, own = encoder.unused_names(), encoder.timm_model.state_dict()
    # Old files have no counters of BatchNorm's batches, and no layer of timm uses them.
    counters = {name: tensor for name, tensor in own.items() if name.endswith("num_batches_tracked")}
    state = unwrap(read_tensors(path))
    if isinstance(encoder, AtrousEncoder):
        check_trunk_settings(encoder, path, is_google_trunk(state))
        state = trunk_of(encoder, state)
    found = {name: tensor for name, tensor in state.items() if name not in unused}
    try:
        load_strictly(encoder.timm_model, counters | found, f"{path} ({encoder.label})")
    except ValueError as error:
        raise ValueError(f"{error}; {other_weights(encoder.label)}") from None


def _load_dinov2(encoder: Dinov2, path: Path) -> set[str]:
    """Loads the one DINOv2 in a file, under whichever names, bare or as part of a larger checkpoint.

    Returns the first parts of the names of the other weights.
    """
    whole = unwrap(read_tensors(path))
    part, prefix = _encoder_part(whole, path)
    others = {name.partition(".")[0] for name in whole if not name.startswith(prefix)}
    state = join_qkv(part)
    state = {name: tensor for name, tensor in state.items() if name not in MASK_TOKENS}
    name_of = _naming(state)
    _check_size(state, name_of, encoder, path)
    pos_embed = name_of("pos_embed")
    grid, own_grid = _grid(state[pos_embed]), _grid(encoder.pos_embed)
    if grid != own_grid:
        log.info(
            "%s: position embeddings resampled from %d x %d to %d x %d", path, grid, grid, own_grid, own_grid
        )
        state[pos_embed] = resize_pos_embed(state[pos_embed].float(), own_grid, own_grid, "size")
    load_strictly(encoder, state, str(path), name_of)
    return others


def read_tensors(path: str | Path) -> dict[str, Any]:
    """Reads a `.safetensors` or torch file; raises a `ValueError` if it is damaged or could run code."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; pass the path of a .safetensors, .pt or .pth file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except pickle.UnpicklingError:
        raise ValueError(f"{path} is damaged or could run code: expected plain tensors; not opened") from None
    except Exception as error:  # a damaged file can raise almost anything
        kind = "safetensors" if path.suffix == ".safetensors" else "torch"
        reason = str(error).split("\n", 1)[0]
        raise ValueError(f"{path} is not a whole {kind} file ({reason}); copy it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a dict of tensors")
    return content


def weights_file(source: Path) -> Path:
    """Returns the file itself, or the weights in a Hugging Face folder."""
    if not source.is_dir():
        return source
    for name in WEIGHT_FILES:
        if (source / name).is_file():
            return source / name
    raise FileNotFoundError(f"{source} has none of {', '.join(WEIGHT_FILES)}; pass another folder or a file")


def encoder_file_sha256(path: str | Path) -> str:
    """Returns a hash of the tensors in a file or folder that `load_encoder_weights` reads."""
    return tensors_sha256(unwrap(read_tensors(weights_file(Path(path)))))


def unwrap(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the state dict inside known wrappers: only tensors, without a prefix that all names share."""
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    state = {str(name): tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
    while prefix := _shared_prefix(state):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def load_strictly(
    module: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    name_of: Callable[[str], str] = str,
) -> None:
    """Copies a state dict into a module.

    Args:
        source: where the weights are from, for messages.
        name_of: returns the name in `state` of a weight of the module.

    Raises:
        ValueError: names or shapes do not match, or tensors hold NaN or infinity; all are listed.
    """
    names = {name_of(name): name for name in module.state_dict()}
    own = dict(zip(names, module.state_dict().values(), strict=True))
    wrong = {
        "missing": [name for name in own if name not in state],
        "left over": [name for name in state if name not in own],
        "other shape": [
            f"{name} {tuple(state[name].shape)} for {tuple(tensor.shape)}"
            for name, tensor in own.items()
            if name in state and state[name].shape != tensor.shape
        ],
    }
    lists = [f"{len(names)} {kind}: {listed(names)}" for kind, names in wrong.items() if names]
    if lists:
        raise ValueError(f"{source} does not fit {type(module).__name__}; {'; '.join(lists)}")
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(
            f"{source} has NaN or infinity in {len(broken)} tensors: {listed(broken)}; "
            "the file is damaged or its training diverged: use another checkpoint"
        )
    module.load_state_dict({names[theirs]: tensor for theirs, tensor in state.items()})


def weights_sha256(model: nn.Module) -> str:
    """Returns a hash of the names, types and values of all weights, whatever file they came from.

    Names are those of version 1, so that a store of pseudo-labels still fits the teacher that labeled it.
    """
    return tensors_sha256(model.state_dict())


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """Returns a hash of the names (those of version 1), types and values of tensors.

    Args:
        state: tensors of any shape and type, by name.
    """
    digest = hashlib.sha256()
    named = {version_1_name(name): tensor for name, tensor in state.items()}
    for name, tensor in sorted(named.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def listed(names: list[str]) -> str:
    """Returns the first names, for a message of one line."""
    return ", ".join(names[:LISTED]) + (" ..." if len(names) > LISTED else "")


def _shared_prefix(state: Mapping[str, Tensor]) -> str | None:
    return next((p for p in PREFIXES if state and all(name.startswith(p) for name in state)), None)


def _encoder_part(state: Mapping[str, Tensor], path: str | Path) -> tuple[dict[str, Tensor], str]:
    """Returns the weights that share the prefix of the only `cls_token`, without it, and the prefix."""
    pattern = re.compile(r"(?:^|\.)((?:embeddings\.)?cls_token)$")
    found = [(name, match[1]) for name in state if (match := pattern.search(name))]
    if len(found) != 1:
        entries = listed(list(state)) or "no tensor"
        raise ValueError(f"{path} has {len(found)} `cls_token`s, expected one encoder; it has: {entries}")
    prefix = found[0][0].removesuffix(found[0][1])
    part = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return part, prefix


def _naming(state: Mapping[str, Tensor]) -> Callable[[str], str]:
    """Returns a function from our names to those of a state dict: Hugging Face's, DINOv2's or timm's."""
    if "embeddings.cls_token" in state:
        return partial(hf_dinov2_name, swiglu=any(".mlp.weights_in." in name for name in state))
    return partial(dinov2_name, swiglu=any(".mlp.w12." in name for name in state))


def _check_size(
    state: Mapping[str, Tensor], name_of: Callable[[str], str], encoder: Dinov2, path: str | Path
) -> None:
    """Raises a `ValueError` for weights of another size, and for those with register tokens."""
    if any(name.endswith(("register_tokens", "reg_token")) for name in state):
        raise ValueError(f"{path} is a DINOv2 with registers; Depth Anything needs the one without")
    width = state[name_of("cls_token")].shape[-1]
    if width != encoder.spec.embed_dim:
        names = [name for name, spec in SIZES.items() if spec.embed_dim == width]
        seems = f"seems to be {names[0]}" if names else "is not a known size"
        raise ValueError(
            f"{path} is {width} wide and {seems}; {encoder.label} is {encoder.spec.embed_dim} wide: "
            f"{other_weights(encoder.label)}"
        )
    if name_of("pos_embed") not in state:
        raise ValueError(f"{path} has no `{name_of('pos_embed')}`; expected DINOv2 weights")


def other_weights(label: str) -> str:
    """Returns the ways to start an encoder whose weights are not in the file that the settings name."""
    return (
        f"pass model.weights=null to download those of {label}, model.weights=FILE with them, or "
        "model.pretrained=false to start at random"
    )


def _grid(pos_embed: Tensor) -> int:
    """Returns the side g of the square patch grid of a position embedding [1 1+g*g c]."""
    return math.isqrt(pos_embed.shape[1] - 1)


def _download(name: str) -> Path:
    """Returns the local path of the official DINOv2 weights, see `_from_hub`."""
    spec = size_of(name)
    if name not in OFFICIAL_FILES:
        raise ValueError(f"{name} has no published weights; pass a local file with model.weights=PATH")
    return _from_hub(spec.timm_name, name, OFFICIAL_FILES[name])


def _from_hub(timm_name: str, label: str | None = None, local_file: str | None = None) -> Path:
    """Returns the local path of the weights that timm lists for a model, downloaded at the first call.

    Args:
        label, local_file: names of the encoder and of a file that serves as well, for messages; timm's own by
            default.
    """
    config = timm.get_pretrained_cfg(timm_name)
    if config is None or config.hf_hub_id is None:
        raise ValueError(f"{timm_name} has no published weights; pass a local file with model.weights=PATH")
    file_name = config.hf_hub_filename or "model.safetensors"
    way_out = f"offline, pass a local file: model.weights=/path/to/{local_file or file_name}"
    what = f"the weights of {label or timm_name} from {config.hf_hub_id}"
    return hub_file(config.hf_hub_id, file_name, what, way_out)
