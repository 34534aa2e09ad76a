"""Models of classes that can tell one class: our own, and those of Hugging Face's transformers."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
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
from depthany.models.files.mobilenet_v2 import ARCHITECTURE as MOBILENET_V2
from depthany.models.files.model_source import ModelSource
from depthany.models.files.weights import weights_sha256
from depthany.system.device import Compute
from depthany.system.packages import optional, reason

# Sizes of images that show what a processor does; no processor leaves the second as it is that pads.
_TRIED = ((96, 192), (97, 193))
_END = 0.05  # how far the end of a ramp may be off


class Segmenter(Protocol):
    """Predicts the probability of one class at every pixel.

    Attributes:
        names: names of its classes.
        revision: identifies its weights, and what else of its files decides the probabilities.
        input_size: pixels of the shorter side of its input; None: its processor decides.
    """

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def revision(self) -> str: ...
    @property
    def input_size(self) -> int | None: ...
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

    @property
    def input_size(self) -> int:
        """Pixels of the shorter side of its input."""
        return self.predictor.input_size

    def prepare(self, image: NDArray[np.uint8], name: str) -> tuple[Tensor, ...]:
        """Returns the inputs of a `PreparedImage` from image [h w 3] uint8 RGB."""
        return self.predictor.prepare(image, name)

    def probabilities(self, images: Sequence[PreparedImage], number: int) -> Iterator[NDArray[np.float32]]:
        """See `Segmenter`."""
        for logits, image in zip(self.predictor.predict(images), images, strict=True):
            yield class_probability(logits, number, image.size, self.predictor.align_corners)


@dataclass(frozen=True)
class HuggingFaceSegmenter:
    """A semantic segmenter of transformers, with the image processor of its folder.

    Attributes:
        amp: dtype of autocast; None computes in float32.
        others: see `Segmenter`.
    """

    model: Any
    processor: Any
    revision: str
    device: torch.device
    amp: torch.dtype | None = None
    input_size: int | None = None  # the processor decides

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its classes, in the order of their numbers."""
        id2label = {int(number): str(name) for number, name in self.model.config.id2label.items()}
        return tuple(id2label[number] for number in sorted(id2label))

    def prepare(self, image: NDArray[np.uint8], name: str) -> tuple[Tensor, ...]:
        """Returns the inputs of a `PreparedImage` as the processor makes them of image [h w 3] uint8 RGB."""
        return (processed(self.processor, image),)

    @torch.inference_mode()
    def probabilities(self, images: Sequence[PreparedImage], number: int) -> Iterator[NDArray[np.float32]]:
        """See `Segmenter`."""
        batch = torch.stack([image.inputs[0] for image in images]).to(self.device)
        with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None):
            logits = self.model(pixel_values=batch).logits.float()  # [b k h w]
        for each, image in zip(logits, images, strict=True):
            yield class_probability(each, number, image.size, align_corners=False)


def processed(processor: Any, image: NDArray[np.uint8]) -> Tensor:
    """Returns the input [3 p q] float32 that an image processor makes of a whole image [h w 3] uint8 RGB."""
    crops = {"do_center_crop": False} if getattr(processor, "do_center_crop", None) else {}
    inputs: Tensor = processor(images=image, return_tensors="pt", **crops)["pixel_values"][0]
    return inputs


def require_whole_images(processor: Any, who: str) -> None:
    """Raises ValueError if an image processor crops or pads: its map would not fit the image.

    Found by trying: both ends of a ramp must be at the ends of the input, along each side of wide and of
    tall images.
    """
    for size, axis in product(
        [shape for low, high in _TRIED for shape in ((low, high), (high, low))], (0, 1)
    ):
        ramp = np.linspace(0, 255, size[axis]).round().astype(np.uint8)
        along = ramp[:, None, None] if axis == 0 else ramp[None, :, None]
        image = np.ascontiguousarray(np.broadcast_to(along, (*size, 3)))
        seen = processed(processor, image)[0].mean(1 - axis)  # [p] or [q], along the ramp
        black, white = (processed(processor, np.full_like(image, value))[0].mean() for value in (0, 255))
        ends = ((seen[[0, -1]] - black) / (white - black)).tolist()
        if seen.numel() < 2 or not (ends[0] < _END and ends[1] > 1 - _END):
            raise ValueError(
                f"{who}: its image processor ({type(processor).__name__}) crops or pads images, so that its "
                "masks would not fit them: set do_center_crop, do_pad and crop_pct in its "
                "preprocessor_config.json to false or null"
            )


def open_segmenter(source: ModelSource, compute: Compute, input_size: int | None) -> Segmenter:
    """Opens a segmentation model of ours, or a folder of transformers; a MobileNetV2 of transformers, which
    is a model of ours, too, is read as such.

    Args:
        input_size: pixels of the shorter side; None = as the model was trained. Not for other models of
            transformers, whose processor decides.

    Raises:
        ValueError: the model is not a segmenter, or a package is missing.
    """
    folder = Path(source.source)
    architecture = _architecture(folder)
    if architecture.endswith("ForSemanticSegmentation") and architecture != MOBILENET_V2:
        if input_size is not None:
            raise ValueError(f"input_size={input_size}: the processor of {source} decides; leave it out")
        return _open_huggingface(folder, compute)
    model, sha256 = load_ready_model(source, compute, hash_weights=True)
    model.quantity.require("classes", str(source), "pass a model that stage=segmentation trained")
    size = model.input_size if input_size is None else input_size
    return OwnSegmenter(Predictor(model, size), _revision(sha256, model.config))


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
    require_whole_images(processor, f"checkpoint={folder}")
    revision = _revision(weights_sha256(model), processor.to_dict())
    model = model.float().to(compute.device).eval()
    return HuggingFaceSegmenter(model, processor, revision, compute.device, compute.amp)


def _revision(weights: str, settings: Mapping[str, Any]) -> str:
    """Returns a hash of the hash of weights, and of the settings of the model or its processor."""
    text = weights + json.dumps(settings, sort_keys=True, default=str)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
