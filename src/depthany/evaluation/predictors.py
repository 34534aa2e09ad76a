"""What can be scored: a model, or a folder of predictions that any program has written."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from depthany.data.folders import walk
from depthany.data.image_formats import ALL_IMAGE_SUFFIXES
from depthany.inference.model_input import ModelInput
from depthany.inference.predictor import PreparedImage
from depthany.models.output import Quantity
from depthany.system.packages import reason

CLASSES = "classes"  # what a model of classes predicts, in place of a space
QUANTITIES = {"disparity": Quantity("disparity"), "depth": Quantity("depth_m")}  # by the user's word


class MissingPrediction(Exception):
    """A folder of predictions has none for an image; the argument names the file."""


class ScoredPredictor(Protocol):
    """What can be scored: `depthany.inference.predictor.Predictor`, or `FolderPredictor`.

    `prepare` is called in threads, `predict` with images whose inputs have equal shapes.

    Attributes:
        label: its name in tables and messages.
        quantity: what its maps hold.
    """

    @property
    def label(self) -> str: ...
    @property
    def quantity(self) -> Quantity: ...
    def for_protocol(self, name: str, wanted: ModelInput) -> "ScoredPredictor": ...
    def prepare(self, image: NDArray[np.uint8], name: str) -> tuple[Tensor, ...]:
        """Returns what the model sees of image [h w 3] uint8 RGB."""
        ...

    def predict(self, images: Sequence[PreparedImage]) -> Tensor | Sequence[Tensor]: ...


def space_of(predictor: ScoredPredictor) -> str:
    """Returns the space of a predictor's maps: "disparity", "depth" or "classes"."""
    if predictor.quantity.kind == CLASSES:
        return CLASSES
    return next(space for space, each in QUANTITIES.items() if predictor.quantity.kind == each.kind)


@dataclass(frozen=True)
class FolderPredictor:
    """Predictions in files: NAME.npy, NAME_16bit.png or NAME.png, with the name of the image in its set.

    A 16-bit PNG holds value = offset + scale * stored, with `scale` and `offset` from its texts, as
    `depthany.predict save=png16` writes them; without these texts, value = stored / stored_per_unit.

    Args:
        quantity: disparity (any scale and shift) or depth in metres (any scale and shift if the protocol
            fits it).
        stored_per_unit: stored value of one metre, or of one unit of disparity, in PNGs without texts.
        label: name in tables and messages.
        allow_not_finite: return metres that are NaN or infinite, instead of raising.
    """

    folder: Path
    quantity: Quantity
    stored_per_unit: float | None = None
    label: str = "predictions"
    allow_not_finite: bool = False

    def for_protocol(self, name: str, wanted: ModelInput) -> "FolderPredictor":
        """Returns the folder of that name inside this folder, or this one if there is none."""
        inner = self.folder / name
        return replace(
            self,
            folder=inner if inner.is_dir() else self.folder,
            allow_not_finite=wanted.allow_not_finite and self.quantity.is_metric,
        )

    def prepare(self, image: NDArray[np.uint8], name: str) -> tuple[Tensor]:
        """Returns the prediction [h w] float32 at the size in its file; image [h w 3] uint8 RGB is not used.

        Raises:
            MissingPrediction: there is no such file.
            ValueError: the file cannot be read, is not a map of numbers, or its texts contradict `quantity`.
        """
        path = self._find(name)
        values = _read_npy(path) if path.suffix == ".npy" else self._read_png(path)
        if not (self.allow_not_finite or np.isfinite(values).all()):
            raise ValueError(f"{path}: {int((~np.isfinite(values)).sum())} values are NaN or infinite")
        return (torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)),)

    def predict(self, images: Sequence[PreparedImage]) -> Sequence[Tensor]:
        """Returns the predictions [h w] as they were read."""
        return [image.inputs[0] for image in images]

    def _find(self, name: str) -> Path:
        suffix = Path(name).suffix
        stem = name.removesuffix(suffix) if suffix.lower() in ALL_IMAGE_SUFFIXES else name
        for candidate in (f"{stem}.npy", f"{stem}_16bit.png", f"{stem}.png"):
            if (self.folder / candidate).is_file():
                return self.folder / candidate
        raise MissingPrediction(f"{self.folder}/{stem}.npy or .png")

    def _read_png(self, path: Path) -> NDArray:
        try:
            with Image.open(path) as file:
                stored, texts, mode = np.asarray(file), dict(getattr(file, "text", {})), file.mode
        except Exception as error:  # Pillow raises many kinds on a damaged file
            raise ValueError(f"{path}: cannot read the prediction: {reason(error)}") from None
        if not mode.startswith("I"):
            raise ValueError(
                f"{path}: a picture of mode {mode} is too coarse to be scored: expected 16-bit gray, or .npy"
            )
        if {"scale", "offset"} <= texts.keys():
            stated = texts.get("quantity", space_of(self))
            if not stated.startswith(space_of(self)):
                raise ValueError(
                    f"{path} says that it holds {stated}: pass quantity={stated.split()[0].strip(',')}"
                )
            return float(texts["offset"]) + float(texts["scale"]) * stored.astype(np.float64)
        if self.stored_per_unit is None and self.quantity.is_metric:
            raise ValueError(
                f"{path} does not say its scale (PNG texts scale and offset): pass stored_per_unit=, the "
                "stored value of one metre, such as 1000 or 256"
            )
        return stored.astype(np.float64) / (self.stored_per_unit or 1.0)


def _read_npy(path: Path) -> NDArray:
    try:
        values = np.load(path, allow_pickle=False)
    except Exception as error:  # NumPy raises many kinds on a damaged file
        raise ValueError(f"{path}: cannot read the prediction: {reason(error)}") from None
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values.squeeze(0 if values.shape[0] == 1 else 2)
    if values.ndim != 2 or values.dtype.kind not in "uif" or not values.size:
        raise ValueError(f"{path}: expected numbers [h w], got {values.dtype} of shape {values.shape}")
    return values


def holds_predictions(path: Path) -> bool:
    """Whether `path` is a folder of predictions, rather than of a model."""
    if not path.is_dir() or any((path / name).exists() for name in ("model.safetensors", "config.json")):
        return False
    suffixes = {os.path.splitext(name)[1] for _, _, names in walk(path) for name in names}
    if any(path.glob("*.safetensors")) or ".pt" in suffixes:
        return False
    return not suffixes.isdisjoint((".npy", ".png"))
