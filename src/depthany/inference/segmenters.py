"""Models of classes that can tell one class: our own, and those of Hugging Face's transformers."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from depthany.data.class_list import find_class
from depthany.inference.predictor import Predictor, PreparedImage
from depthany.inference.ready_model import load_ready_model
from depthany.models.files.model_source import ModelSource
from depthany.system.device import Compute
from depthany.system.packages import optional, reason


class Segmenter(Protocol):
    """Predicts the probability of one class at every pixel.

    Attributes:
        names: names of its classes. revision: identifies its weights.
    """

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def revision(self) -> str: ...
    def prepare(self, image: NDArray[np.uint8], name: str) -> tuple[Tensor, ...]:
        """Returns what the model sees of image [h w 3] uint8 RGB."""
        ...

    def probabilities(self, images: Sequence[PreparedImage], number: int) -> Iterator[NDArray[np.float32]]:
        """Yields [h w] float32 of each image, at its own size: the probability of class `number`."""


def class_probability(
    logits: Tensor, number: int, size: tuple[int, int], align_corners: bool
) -> NDArray[np.float32]:
    """Returns the softmax probability [height width] of a class, from logits [k h w] enlarged to the size.

    Classes are enlarged one by one, so that memory does not grow with their number.
    """
    whole = F.interpolate(
        logits[None, number : number + 1], size, mode="bilinear", align_corners=align_corners
    )
    most, total = whole.new_full(size, -torch.inf), whole.new_zeros(size)  # of a running log-sum-exp
    for each in logits:
        enlarged = F.interpolate(each[None, None], size, mode="bilinear", align_corners=align_corners)[0, 0]
        larger = torch.maximum(most, enlarged)
        total = total * (most - larger).exp() + (enlarged - larger).exp()
        most = larger
    return ((whole[0, 0] - most).exp() / total).cpu().numpy()


@dataclass(frozen=True)
class OwnSegmenter:
    """A segmentation model of ours."""

    predictor: Predictor
    revision: str

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its classes."""
        return self.predictor.quantity.class_names

    def prepare(self, image: NDArray[np.uint8], name: str) -> tuple[Tensor, ...]:
        """Returns the inputs of a `PreparedImage` from image [h w 3] uint8 RGB."""
        return self.predictor.prepare(image, name)

    def probabilities(self, images: Sequence[PreparedImage], number: int) -> Iterator[NDArray[np.float32]]:
        """See `Segmenter`."""
        for logits, image in zip(self.predictor.predict(images), images, strict=True):
            yield class_probability(logits, number, image.size, self.predictor.align_corners)


@dataclass(frozen=True)
class HuggingFaceSegmenter:
    """A semantic segmenter of transformers, with the image processor of its folder."""

    model: Any
    processor: Any
    revision: str
    device: torch.device

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its classes, in the order of their numbers."""
        id2label = {int(number): str(name) for number, name in self.model.config.id2label.items()}
        return tuple(id2label[number] for number in sorted(id2label))

    def prepare(self, image: NDArray[np.uint8], name: str) -> tuple[Tensor, ...]:
        """Returns the inputs of a `PreparedImage` as the processor makes them of image [h w 3] uint8 RGB."""
        return (self.processor(images=image, return_tensors="pt")["pixel_values"][0],)

    @torch.inference_mode()
    def probabilities(self, images: Sequence[PreparedImage], number: int) -> Iterator[NDArray[np.float32]]:
        """See `Segmenter`."""
        batch = torch.stack([image.inputs[0] for image in images]).to(self.device)
        logits = self.model(pixel_values=batch).logits.float()  # [b k h w]
        for each, image in zip(logits, images, strict=True):
            yield class_probability(each, number, image.size, align_corners=False)


def open_segmenter(source: ModelSource, compute: Compute, input_size: int | None) -> Segmenter:
    """Opens a segmentation model of ours, or a folder of transformers.

    Args:
        input_size: pixels of the shorter side; None = as the model was trained. Not for transformers, whose
            processor decides.

    Raises:
        ValueError: the model is not a segmenter, or a package is missing.
    """
    folder = Path(source.source)
    if _architecture(folder).endswith("ForSemanticSegmentation"):
        if input_size is not None:
            raise ValueError(f"input_size={input_size}: the processor of {source} decides; leave it out")
        return _open_huggingface(folder, compute)
    model, sha256 = load_ready_model(source, compute, hash_weights=True)
    model.quantity.require("classes", str(source), "pass a model that stage=segmentation trained")
    size = model.input_size if input_size is None else input_size
    return OwnSegmenter(Predictor(model, size), f"sha256:{sha256}")


def require_class(names: Sequence[str], wanted: str, who: str) -> int:
    """Returns the number of the class with a name. Raises ValueError, which lists the names, if there is
    none.
    """
    number = find_class(names, wanted)
    if number is None:
        listed = ", ".join(names[:30]) + (", ..." if len(names) > 30 else "")
        raise ValueError(
            f"{who} has no class {wanted!r} among its {len(names)} classes ({listed}): pass a model of "
            "ADE20K, Cityscapes or another set with it; PASCAL VOC has no sky"
        )
    return number


def _architecture(folder: Path) -> str:
    """Returns the class that a `config.json` of transformers names, "" if there is none."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return str((content.get("architectures") or [""])[0])
    except (OSError, ValueError, AttributeError):
        return ""


def _open_huggingface(folder: Path, compute: Compute) -> HuggingFaceSegmenter:
    transformers = optional("transformers", "a segmenter of Hugging Face")
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        model = transformers.AutoModelForSemanticSegmentation.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"checkpoint={folder}: cannot load the segmenter: {reason(error)}") from None
    commit = getattr(model.config, "_commit_hash", None)
    revision = f"commit:{commit}" if commit else f"transformers:{transformers.__version__}"
    return HuggingFaceSegmenter(model.to(compute.device).eval(), processor, revision, compute.device)
