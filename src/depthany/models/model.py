"""The model: encoder, decoder and head in one module that can be saved, and used on images of any size."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from depthany.models.encoder import Encoder, patch_tokens
from depthany.models.heads.head import Head
from depthany.models.infer import infer_batch
from depthany.models.levels import Levels
from depthany.models.output import Prediction, Quantity
from depthany.models.preprocess import Preprocessing
from depthany.models.tables import DECODERS, ENCODERS, HEADS
from depthany.models.trained_on import TrainedOn
from depthany.system.files import write_atomically
from depthany.system.plugins import loaded_plugins

FORMAT, FORMAT_VERSION = "depthany", 2
WEIGHTS_NAME, CONFIG_NAME = "model.safetensors", "config.json"


class DenseModel(nn.Module):
    """A model that predicts a map of the size of its image. `build_model` builds one from plain values.

    Args:
        encoder, decoder, head: its parts, by the names in `depthany.models.tables`.
        config: {"encoder": {"name": ..., arguments}, "decoder": ..., "head": ..., "input_size": ...}, and
            "trained_on" where it is known; `build_model(**config)` builds the same model.

    Attributes:
        quantity: what the map holds: disparity, depth in metres or classes.
        preprocessing: the image size and normalisation that the encoder expects.
        input_size: pixels of the shorter side in training, the default of `infer`.
        trained_on: data sets and camera that the metres of a metric model are from; None if not known.
        frozen_parts: names of the parts that do not learn, see `freeze`.
    """

    def __init__(self, encoder: Encoder, decoder: nn.Module, head: Head, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.encoder, self.decoder, self.head = encoder, decoder, head
        self.config = dict(config)
        self.input_size: int = self.config["input_size"]
        self.frozen_parts: tuple[str, ...] = ()
        self.preprocessing.require_input_size(self.input_size)

    @property
    def quantity(self) -> Quantity:
        """What the map holds."""
        return self.head.quantity

    @property
    def preprocessing(self) -> Preprocessing:
        """The image size and normalisation that the encoder expects."""
        return self.encoder.preprocessing

    @property
    def trained_on(self) -> TrainedOn | None:
        """Data sets and camera that the metres are from."""
        about = self.config.get("trained_on")
        return None if about is None else TrainedOn.from_config(about)

    @trained_on.setter
    def trained_on(self, value: TrainedOn | None) -> None:
        self.config.pop("trained_on", None)
        if value is not None:
            self.config["trained_on"] = value.to_config()

    def freeze(self, parts: Sequence[str]) -> None:
        """Stops parts (encoder, decoder, head) from learning: no gradient, and eval mode even in training."""
        self.frozen_parts = tuple(parts)
        for name in parts:
            self.get_submodule(name).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "DenseModel":
        """Sets training mode, except for the frozen parts."""
        super().train(mode)
        for name in self.frozen_parts:
            self.get_submodule(name).eval()
        return self

    def forward(self, image: Tensor, with_features: bool = False) -> Prediction:
        """Predicts a map [b h w] float32, or [b k h w] class logits; see `quantity`.

        Args:
            image: [b 3 h w] RGB as `preprocessing` returns it.
            with_features: also return the encoder's last level as patch tokens [b p*q c], of the same pass.
        """
        levels = self.encoder(image)
        prediction: Prediction = self.head(self.decoder(levels), (image.shape[-2], image.shape[-1]))
        if not with_features:
            return prediction
        return Prediction(prediction.map, patch_tokens(levels[-1]), prediction.extra)

    def infer(
        self, image: NDArray[np.uint8], input_size: int | None = None, amp: torch.dtype | None = None
    ) -> NDArray[np.float32]:
        """Predicts the map [h w] float32 of one image, at the image's own size; see `quantity`.

        Args:
            image: [h w 3] uint8 RGB.
            input_size: pixels of the shorter side as the model sees it, rounded up to a multiple of the patch
                size; None: as in training.
            amp: dtype of autocast (torch.bfloat16 is the fast choice); None computes in the type of the
                weights.

        Raises:
            ValueError: the image has another shape or type, or its input would be too large.
        """
        return self.infer_batch([image], input_size, 1, amp)[0]

    def infer_batch(
        self,
        images: Sequence[NDArray[np.uint8]],
        input_size: int | None = None,
        batch_size: int = 8,
        amp: torch.dtype | None = None,
    ) -> list[NDArray[np.float32]]:
        """Predicts the maps of several images; images of one input shape share a pass. See `infer`.

        Args:
            images: [h w 3] uint8 RGB of any sizes.
            batch_size: most images of a pass. In float32 it changes the maps only by rounding, less than
                1e-5 of their range.
        """
        size = self.input_size if input_size is None else input_size
        return infer_batch(self, self.preprocessing, images, size, batch_size, amp)


def build_model(
    encoder: Mapping[str, Any],
    decoder: Mapping[str, Any] | None = None,
    head: Mapping[str, Any] | None = None,
    input_size: int = 518,
    trained_on: Mapping[str, Any] | None = None,
) -> DenseModel:
    """Builds a model with random weights.

    Args:
        encoder, decoder, head: {"name": a row of `depthany.models.tables`, and its arguments}. The decoder
            defaults to DPT with the widths that go with the encoder, the head to relative disparity.
        input_size: pixels of the shorter side in training.
        trained_on: see `TrainedOn.to_config`.

    Raises:
        ValueError: a name or an argument is unknown, or a value is out of range.
    """
    built_encoder = _build("encoder", ENCODERS, encoder)
    features, out_channels = built_encoder.dpt_widths
    wanted = {"name": "dpt", **(decoder or {})}
    if wanted["name"] == "dpt":
        wanted = {"features": features, "out_channels": out_channels, **wanted}
    levels = {"widths": built_encoder.widths, "strides": built_encoder.strides}
    built_decoder = _build("decoder", DECODERS, wanted, **levels)
    named_head = {"name": "relative", **(head or {})}
    _require_decoder(named_head["name"], wanted["name"], built_decoder)
    built_head = _build("head", HEADS, named_head, **_given_to_head(named_head["name"], built_decoder))
    config = {
        "encoder": {"name": encoder["name"], **built_encoder.config},
        "decoder": {"name": wanted["name"], **built_decoder.config},
        "head": {"name": named_head["name"], **built_head.config},
        "input_size": input_size,
    }
    model = DenseModel(built_encoder, built_decoder, built_head, config)
    model.trained_on = None if trained_on is None else TrainedOn.from_config(trained_on)
    return model


def _given_to_head(head: str, decoder: nn.Module) -> dict[str, Any]:
    """Returns what a head is built on: the decoder's width, and the strides of levels if it takes them."""
    takes = inspect.signature(HEADS[head]).parameters if head in HEADS else ()
    return {name: getattr(decoder, name) for name in ("features", "strides") if name in takes}


def _require_decoder(head: str, name: str, decoder: nn.Module) -> None:
    """Raises a ValueError if a head is put on a decoder whose output it does not take."""
    takes_levels, gives_levels = getattr(HEADS.get(head), "takes_levels", False), isinstance(decoder, Levels)
    if takes_levels != gives_levels:
        other = "levels" if takes_levels else "dpt"
        raise ValueError(f"head {head} does not go with decoder {name}: choose model.decoder.name={other}")


def depth_anything(
    size: str = "vits",
    taps: str = "v1",
    pos_interpolation: str = "official",
    max_depth_m: float | None = None,
    input_size: int = 518,
) -> DenseModel:
    """Builds a Depth Anything model as released: DINOv2, DPT, relative or metric head; random weights.

    Source: Yang et al. 2024 (arXiv 2401.10891) and 2024 (arXiv 2406.09414).

    Args:
        size, taps, pos_interpolation: see `depthany.models.dinov2.Dinov2`.
        max_depth_m: metres at the far end of a metric model; None for relative disparity.
        input_size: pixels of the shorter side in training.
    """
    return build_model(**depth_anything_config(size, taps, pos_interpolation, max_depth_m, input_size))


def depth_anything_config(
    size: str,
    taps: str,
    pos_interpolation: str = "official",
    max_depth_m: float | None = None,
    input_size: int = 518,
) -> dict[str, Any]:
    """Returns the arguments of `build_model` for `depth_anything` with the same arguments."""
    metric = {"name": "metric_sigmoid", "max_depth_m": max_depth_m}
    return {
        "encoder": {"name": "dinov2", "size": size, "taps": taps, "pos_interpolation": pos_interpolation},
        "head": {"name": "relative"} if max_depth_m is None else metric,
        "input_size": input_size,
    }


def build_encoder(config: Mapping[str, Any]) -> Encoder:
    """Builds an encoder alone, with random weights; see `build_model`."""
    encoder: Encoder = _build("encoder", ENCODERS, config)
    return encoder


def _build(
    part: str, table: Mapping[str, Callable[..., Any]], config: Mapping[str, Any], **given: Any
) -> Any:
    arguments = dict(config)
    name = arguments.pop("name", None)
    if name not in table:
        raise ValueError(f"unknown {part} {name!r}; choose from {', '.join(table)}")
    parameters = [p for p in inspect.signature(table[name]).parameters.values() if p.name not in given]
    known = [p.name for p in parameters]
    if unknown := [key for key in arguments if key not in known]:
        raise ValueError(
            f"{part} {name} has no argument {unknown[0]!r}; it takes {', '.join(known) or 'none'}"
        )
    if missing := [p.name for p in parameters if p.default is p.empty and p.name not in arguments]:
        raise ValueError(f"{part} {name} needs {missing[0]}: pass +model.{part}.{missing[0]}=...")
    return table[name](**given, **arguments)


def save_model(model: DenseModel, folder: str | Path, extra: Mapping[str, Any] | None = None) -> Path:
    """Writes `model.safetensors` and `config.json` to a folder; returns the path of the weights.

    Both files appear whole or not at all, the weights last: a folder with `model.safetensors` is a finished
    model.

    Args:
        extra: JSON-able entries for the top level of `config.json`, for example how the model was trained.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    own = {"format": FORMAT, "version": FORMAT_VERSION, "model": model.config}
    own |= {"quantity": model.quantity.to_config(), "plugins": loaded_plugins()}
    text = json.dumps({**own, **(extra or {}), **own}, indent=2) + "\n"
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(folder / CONFIG_NAME, lambda temporary: temporary.write_text(text))
    write_atomically(folder / WEIGHTS_NAME, lambda temporary: save_file(state, temporary))
    return folder / WEIGHTS_NAME
