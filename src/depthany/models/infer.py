"""From images of any size to maps of the same size, in batches of equal model-input shapes."""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from depthany.models.preprocess import Preprocessing, check_image

Size = tuple[int, int]  # height, width
CLASSES_AT_ONCE = 16


def infer_batch(
    model: nn.Module,
    preprocessing: Preprocessing,
    images: Sequence[NDArray[np.uint8]],
    input_size: int,
    batch_size: int = 8,
    amp: torch.dtype | None = None,
) -> list[NDArray[np.float32]]:
    """Predicts the map [h w] float32 of each image, in the order and at the sizes of the images; for a model
    of classes, the numbers of the most likely ones, uint8.

    Args:
        images: uint8 RGB, [h w 3] each.
        input_size: pixels of the shorter side as the model sees it; rounded up to a multiple of the patch
            size, with a warning.
        batch_size: images of equal model-input shape that go through the model together. In float32 that
            changes the result only by rounding, less than 1e-5 of its range.
        amp: dtype of autocast; None computes in the type of the weights.
    """
    preprocessing.require_input_size(input_size)
    if (used := preprocessing.shorter_side(input_size)) != input_size:
        multiple = preprocessing.multiple
        warnings.warn(
            f"input_size={input_size} is rounded up to {used}, a multiple of {multiple}", stacklevel=3
        )
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected 1 or more")
    results: dict[int, NDArray[np.float32]] = {}
    for members in _equal_inputs(preprocessing, images, input_size, batch_size):
        inputs = torch.stack([preprocessing.prepare(images[i], input_size) for i in members])
        sizes = [images[i].shape[:2] for i in members]
        results.update(zip(members, infer_prepared(model, inputs, sizes, amp), strict=True))
    return [results[i] for i in range(len(images))]


@torch.inference_mode()
def infer_prepared(
    model: nn.Module, inputs: Tensor, sizes: Iterable[Size], amp: torch.dtype | None = None
) -> list[NDArray[np.float32]]:
    """Predicts maps [height width] float32, resized to the given sizes as in the released code: bilinear with
    aligned corners.

    Args:
        inputs: [b 3 h w] as `Preprocessing.prepare` returns them, on any device.
        sizes: (height, width) of each original image.
        amp: dtype of autocast, or None.
    """
    maps = forward_maps(model, inputs, amp)  # [b h w], or logits [b k h w]
    if maps.ndim == 4:
        corners = bool(getattr(getattr(model, "head", None), "align_corners", False))
        pairs = zip(maps, sizes, strict=True)
        return [class_map(logits, size, corners).cpu().numpy() for logits, size in pairs]
    return [resize_map(single, size).cpu().numpy() for single, size in zip(maps, sizes, strict=True)]


def forward_maps(model: nn.Module, inputs: Tensor, amp: torch.dtype | None = None) -> Tensor:
    """Returns the maps [b h w] float32 of inputs [b 3 h w], on the device of the model.

    Args:
        model: returns a `Prediction`; it computes in the type of its weights.
        inputs: normalised, on any device and of any type.
        amp: dtype of autocast, or None.
    """
    weights = next(model.parameters())
    with torch.autocast(weights.device.type, amp, enabled=amp is not None):
        maps: Tensor = model(inputs.to(weights.device).to(weights.dtype)).map
    return maps.float()


def resize_map(
    values: Tensor, size: Size, mode: str = "bilinear", align_corners: bool | None = True
) -> Tensor:
    """Returns `values` [h w] float32 resized to `size`; by default bilinear with aligned corners."""
    if tuple(values.shape) == tuple(size):
        return values
    return F.interpolate(values[None, None], size, mode=mode, align_corners=align_corners)[0, 0]


def class_map(logits: Tensor, size: Size, align_corners: bool) -> Tensor:
    """Returns the most likely class [height width] uint8 of logits [k h w], enlarged bilinearly first.

    Classes are enlarged in groups, so that memory does not grow with their number.

    Args:
        align_corners: as the head enlarges its logits.
    """
    best = logits.new_full(size, -torch.inf)
    numbers = torch.zeros(size, dtype=torch.uint8, device=logits.device)
    for first in range(0, len(logits), CLASSES_AT_ONCE):
        some = logits[None, first : first + CLASSES_AT_ONCE]
        enlarged = F.interpolate(some, size, mode="bilinear", align_corners=align_corners)[0]  # [c h w]
        most, place = enlarged.max(0)
        is_better = most > best
        best = torch.where(is_better, most, best)
        numbers = torch.where(is_better, (place + first).to(torch.uint8), numbers)
    return numbers


def _equal_inputs(
    preprocessing: Preprocessing, images: Sequence[NDArray[np.uint8]], input_size: int, batch_size: int
) -> Iterator[list[int]]:
    """Yields positions of at most `batch_size` images of one model-input shape."""
    groups: dict[Size, list[int]] = defaultdict(list)
    for i, image in enumerate(images):
        check_image(image)
        groups[preprocessing.input_shape(image.shape[0], image.shape[1], input_size)].append(i)
    for members in groups.values():
        for start in range(0, len(members), batch_size):
            yield members[start : start + batch_size]
