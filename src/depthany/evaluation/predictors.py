"""What is scored: a model, or a folder of predictions that any program has written."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from depthany.data.images import IMAGE_SUFFIXES
from depthany.evaluation import protocol as protocols
from depthany.inference.predictor import is_out_of_memory
from depthany.models.model import DenseModel
from depthany.system.packages import reason

Size = tuple[int, int]  # height, width
QUANTITIES = ("disparity", "depth")


class MissingPrediction(Exception):
    """A folder of predictions has none of an image; the argument says what was looked for."""


class Predictor(Protocol):
    """What can be scored, in two steps: `prepare` in threads, `predict` in batches of equal `key`.

    label: its name in tables. quantity: disparity or depth. about: what else the results say of it.
    """

    @property
    def label(self) -> str: ...
    @property
    def quantity(self) -> str: ...
    @property
    def about(self) -> dict[str, Any]: ...
    def prepare(self, name: str, image: NDArray[np.uint8], protocol: protocols.Protocol) -> Tensor: ...
    def key(self, prepared: Tensor) -> Hashable: ...
    def predict(self, prepared: Sequence[Tensor]) -> Tensor | Sequence[Tensor]: ...


@dataclass(frozen=True)
class ModelPredictor:
    """A model on its device, in eval mode.

    Args:
        input_size: pixels of the shorter side where the protocol says none.
        amp: dtype of autocast; None computes in the type of the weights.
    """

    model: DenseModel
    input_size: int
    device: torch.device
    quantity: str = "disparity"
    amp: torch.dtype | None = None
    label: str = "model"
    about: dict[str, Any] = field(default_factory=dict)

    def prepare(self, name: str, image: NDArray[np.uint8], protocol: protocols.Protocol) -> Tensor:
        """Model input [3 h w]; raises a `ValueError` where the image is too long for the size."""
        try:
            return self.model.preprocessing.prepare(image, protocol.input_size or self.input_size)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    def key(self, prepared: Tensor) -> Hashable:
        """Inputs of one shape go through the model together."""
        return prepared.shape

    def predict(self, prepared: Sequence[Tensor]) -> Tensor:
        """[b h w] float32 on the device."""
        weights = next(self.model.parameters(), torch.empty(0))
        try:
            batch = torch.stack(list(prepared)).to(self.device, weights.dtype)  # [b 3 h w]
            with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None):
                values: Tensor = self.model(batch).map
                return values.float()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise ValueError(
                f"memory is not enough for {len(prepared)} images of {tuple(prepared[0].shape[1:])} at once: "
                "lower batch_size or input_size"
            ) from None


@dataclass(frozen=True)
class FolderPredictor:
    """Predictions in files: NAME.npy, NAME_16bit.png or NAME.png, NAME that of the image in its set.

    They are looked for in the folder of the protocol's name, where there is one, else in the folder itself.
    A 16-bit PNG says in its texts `scale` and `offset` what it holds (`depthany.predict save=png16` writes
    them: value = offset + scale * stored); without them value = stored / stored_per_unit.

    Args:
        quantity: disparity (larger is nearer, any scale and shift) or depth (metres, or any scale and shift
            where the protocol fits it).
        stored_per_unit: of PNGs without texts: the stored value of one metre, or of one unit of disparity.
    """

    folder: Path
    quantity: str
    stored_per_unit: float | None = None
    label: str = "predictions"
    about: dict[str, Any] = field(default_factory=dict)

    def prepare(self, name: str, image: NDArray[np.uint8], protocol: protocols.Protocol) -> Tensor:
        """The prediction [h w] float32, at the size it has.

        Raises:
            MissingPrediction: there is no such file.
            ValueError: it cannot be read, is no map of numbers, or its texts contradict `quantity`.
        """
        path = self._find(name, protocol.name)
        values = _read_npy(path) if path.suffix == ".npy" else self._read_png(path)
        if not np.isfinite(values).all():
            raise ValueError(f"{path}: {int((~np.isfinite(values)).sum())} values are NaN or infinite")
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))

    def key(self, prepared: Tensor) -> Hashable:
        """They need no model: any may go together."""
        return None

    def predict(self, prepared: Sequence[Tensor]) -> Sequence[Tensor]:
        """[h w] each, as read."""
        return prepared

    def _find(self, name: str, protocol_name: str) -> Path:
        own = self.folder / protocol_name
        folder = own if own.is_dir() else self.folder
        stem = name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in IMAGE_SUFFIXES else name
        for candidate in (f"{stem}.npy", f"{stem}_16bit.png", f"{stem}.png"):
            if (folder / candidate).is_file():
                return folder / candidate
        raise MissingPrediction(f"{folder}/{stem}.npy or .png")

    def _read_png(self, path: Path) -> NDArray:
        try:
            with Image.open(path) as file:
                stored, texts, mode = np.asarray(file), dict(getattr(file, "text", {})), file.mode
        except Exception as error:  # whatever a damaged file leads Pillow to
            raise ValueError(f"{path}: cannot read the prediction: {reason(error)}") from None
        if not mode.startswith("I"):
            raise ValueError(
                f"{path}: a picture of mode {mode}, too coarse to be scored: expected 16-bit gray, or .npy"
            )
        if {"scale", "offset"} <= texts.keys():
            told = texts.get("quantity", self.quantity)
            if not told.startswith(self.quantity):
                raise ValueError(
                    f"{path} says that it holds {told}: pass quantity={told.split()[0].strip(',')}"
                )
            return float(texts["offset"]) + float(texts["scale"]) * stored.astype(np.float64)
        if self.stored_per_unit is None and self.quantity == "depth":
            raise ValueError(
                f"{path} does not say its scale (PNG texts scale and offset): pass stored_per_unit=, the "
                "stored value of one metre, such as 1000 or 256"
            )
        return stored.astype(np.float64) / (self.stored_per_unit or 1.0)


def _read_npy(path: Path) -> NDArray:
    try:
        values = np.load(path, allow_pickle=False)
    except Exception as error:  # whatever a damaged file leads NumPy to
        raise ValueError(f"{path}: cannot read the prediction: {reason(error)}") from None
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values.squeeze(0 if values.shape[0] == 1 else 2)
    if values.ndim != 2 or values.dtype.kind not in "uif" or not values.size:
        raise ValueError(f"{path}: expected numbers [h w], got {values.dtype} of shape {values.shape}")
    return values


def resize(values: Tensor, size: Size, upsample: str) -> Tensor:
    """A map [h w] float32 at [height width], by a rule of `evaluation.protocol.UPSAMPLES`."""
    if tuple(values.shape) == tuple(size):
        return values
    mode, corners = protocols.UPSAMPLES[upsample]
    return F.interpolate(values[None, None], size, mode=mode, align_corners=corners)[0, 0]


def holds_predictions(path: Path) -> bool:
    """Whether a path is a folder of predictions rather than of a model."""
    if not path.is_dir() or any((path / name).exists() for name in ("model.safetensors", "config.json")):
        return False
    if any(path.glob("*.safetensors")) or any(path.rglob("*.pt")):
        return False
    return any(each.suffix in (".npy", ".png") for each in path.rglob("*"))
