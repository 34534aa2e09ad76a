"""The depth model: encoder and decoder in one module that can be saved, and rebuilt from its own file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from depthany.files import write_atomically
from depthany.models.dpt import DPT
from depthany.models.encoder import Encoder, patch_grid
from depthany.models.weights import load_strictly, read_tensors

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB in 0..1
IMAGENET_STD = (0.229, 0.224, 0.225)
FORMAT, FORMAT_VERSION = "depthany", 1
WEIGHTS_NAME, CONFIG_NAME = "model.safetensors", "config.json"


class DepthModel(nn.Module):
    """Depth Anything: a DINOv2 encoder and a DPT decoder, predicting disparity up to scale and shift.

    Source: Yang et al. 2024 (arXiv 2401.10891) and 2024 (arXiv 2406.09414).

    Args:
        encoder: vitt, vits, vitb, vitl or vitg (see `depthany.models.encoder.ENCODERS`).
        taps: "v1" or "v2", the blocks that feed the decoder.
        pos_interpolation: "official" or "size", see `depthany.models.encoder.resize_pos_embed`.

    Attributes:
        config: the arguments above as plain values; `DepthModel(**config)` builds the same model.
    """

    def __init__(self, encoder: str = "vits", taps: str = "v1", pos_interpolation: str = "official") -> None:
        super().__init__()
        self.config = {"encoder": encoder, "taps": taps, "pos_interpolation": pos_interpolation}
        self.encoder = Encoder(encoder, taps, pos_interpolation)
        spec = self.encoder.spec
        self.decoder = DPT(spec.embed_dim, spec.dpt_features, spec.out_channels)

    def forward(self, image: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Disparity [b h w] float32, >= 0, larger is nearer; no unit, known up to scale and shift.

        Args:
            image: [b 3 h w] ImageNet-normalised RGB, h and w multiples of 14.
            return_features: also give the encoder's final normalised patch tokens [b p*q c] of the same pass.
        """
        tokens = self.encoder(image)
        disparity = self.decoder(tokens, *patch_grid(image))
        return (disparity, tokens[-1]) if return_features else disparity


def normalise(image: Tensor) -> Tensor:
    """ImageNet-normalised float32 [b 3 h w] of RGB uint8 [b 3 h w]."""
    mean = torch.tensor(IMAGENET_MEAN, device=image.device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=image.device).view(3, 1, 1)
    return (image.float() / 255.0 - mean) / std


def save_model(model: DepthModel, folder: str | Path, extra: Mapping[str, Any] | None = None) -> Path:
    """Write `model.safetensors` and `config.json` to a folder; give the path of the weights.

    Both appear whole or not at all, the weights last: a folder with `model.safetensors` is a finished model.

    Args:
        extra: JSON-able entries for the top level of `config.json`, for example how the model was trained.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    own = {"format": FORMAT, "version": FORMAT_VERSION, "model": model.config}
    text = json.dumps({**own, **(extra or {}), **own}, indent=2) + "\n"
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(folder / CONFIG_NAME, lambda temporary: temporary.write_text(text))
    write_atomically(folder / WEIGHTS_NAME, lambda temporary: save_file(state, temporary))
    return folder / WEIGHTS_NAME


def load_model(source: str | Path, device: str | torch.device = "cpu") -> DepthModel:
    """The model of a file of ours, in eval mode.

    Args:
        source: a run directory with `model.safetensors` and `config.json`, that `.safetensors` file itself,
            or a training checkpoint `.pt` that has "model" (weights) and "model_config" (arguments of
            DepthModel).
    """
    path = _weights_file(Path(source))
    state = read_tensors(path)
    if path.suffix == ".safetensors":
        config = _read_config(path.with_name(CONFIG_NAME))
    else:
        if not {"model", "model_config"} <= state.keys():
            raise ValueError(f"{path} is no depthany checkpoint: it lacks 'model' or 'model_config'")
        state, config = state["model"], state["model_config"]
    with torch.device("meta"):  # no time spent on random weights that are replaced at once
        model = _build(config, path)
    model.to_empty(device=device)
    load_strictly(model, state, str(path))
    return model.eval()


def _weights_file(source: Path) -> Path:
    """The file to load for a source; a directory without a finished model is explained."""
    if source.is_file():
        return source
    if not source.is_dir():
        raise FileNotFoundError(
            f"{source} does not exist; pass a run directory, a .safetensors or a .pt file"
        )
    if (source / WEIGHTS_NAME).is_file():
        return source / WEIGHTS_NAME
    checkpoints = sorted(str(path) for path in source.rglob("*.pt"))
    if checkpoints:
        raise FileNotFoundError(
            f"{source} is a run that is not finished: no {WEIGHTS_NAME} yet; resume it, or load one of its "
            f"{len(checkpoints)} checkpoints: {', '.join(checkpoints[-3:])}"
        )
    raise FileNotFoundError(
        f"{source} has neither {WEIGHTS_NAME} nor a .pt checkpoint; pass another directory"
    )


def _read_config(path: Path) -> dict[str, Any]:
    """Arguments of DepthModel from a `config.json` of ours."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; keep {CONFIG_NAME} beside {WEIGHTS_NAME}")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); copy it again from the run directory") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT or "model" not in config:
        raise ValueError(f"{path} is not a depthany model: expected format {FORMAT!r} and an entry 'model'")
    if config.get("version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has version {config.get('version')!r}, expected {FORMAT_VERSION}: update depthany"
        )
    return config["model"]


def _build(config: Mapping[str, Any], path: Path) -> DepthModel:
    try:
        return DepthModel(**config)
    except TypeError as error:
        raise ValueError(f"{path} has model arguments that DepthModel does not take: {error}") from None
