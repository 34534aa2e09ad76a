"""A model that predicts batches of images: prepared in threads, averaged over views, checked to be finite.

Prediction of files, pseudo-labeling, evaluation and validation all use `Predictor`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from depthany.inference.averaging import average, average_classes, finite_maps, window_starts
from depthany.inference.launched import DeviceClock, Launched, Pending, stacked
from depthany.inference.model_input import FixedSize, ModelInput
from depthany.models.infer import class_map, forward_maps, resize_map
from depthany.models.model import DenseModel
from depthany.models.output import Quantity
from depthany.system.plurals import counted


@dataclass(frozen=True)
class PreparedImage:
    """An image as the model takes it. Images whose inputs have equal shapes can share a batch.

    Attributes:
        name: name of the image, for messages.
        inputs: [3 h w] for each scale: float32 as `Predictor.prepare` returns it, or uint8 RGB, which is
            normalised on the device of the model.
        size: (height, width) of the image.
    """

    name: str
    inputs: tuple[Tensor, ...]
    size: tuple[int, int]

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        """Shapes of the inputs."""
        return tuple(each.shape for each in self.inputs)


@dataclass(frozen=True)
class Predictor:
    """Predicts maps in two steps that can overlap for different images: `prepare` and `predict`.

    Args:
        model: in eval mode, on its device; it computes in the type of its weights.
        input_size: pixels of the shorter side as the model sees it, rounded up to a multiple of its patch
            size; see `describe_size`.
        scales: factors on `input_size`; the prediction is the average over them.
        flip: average over the mirrored image, too.
        amp: dtype of autocast; None: no autocast.
        label: name of the model in tables and messages.
        margin: patches of mirrored border that `prepare` adds on each side of an input, and that are cut off
            its map: less of the rim that zero padding leaves (docs/exports.md). The released code has none.
        fixed_size: fixed size of the input, in place of `input_size` and `scales`; None: not fixed.
        allow_not_finite: return metres that are NaN or infinite, instead of raising.
        window: side in pixels of a window that slides over the input of a model of classes, rounded up to a
            multiple of its patch; logits are averaged where windows overlap. None: the input as a whole.
        stride: pixels between windows; None: two thirds of a window.
        forward: computes the maps of inputs as `forward_maps` does, such as a `ReplayedMaps`.

    Raises:
        ValueError: `input_size` times a scale is too small for the model or for the margin, or too large for
            any image.
    """

    model: DenseModel
    input_size: int
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    amp: torch.dtype | None = None
    label: str = "the model"
    margin: int = 0
    fixed_size: FixedSize | None = None
    allow_not_finite: bool = False
    window: int | None = None
    stride: int | None = None
    forward: Callable[[torch.nn.Module, Tensor, torch.dtype | None], Tensor] = forward_maps

    def __post_init__(self) -> None:
        for size in self._sizes():
            self.model.preprocessing.require_input_size(size)
            if size <= self._margin_px:
                raise ValueError(
                    f"margin={self.margin}: mirrors {self._margin_px} pixels, but the shorter side of an "
                    f"input has {size}: lower margin, or raise input_size"
                )

    @property
    def quantity(self) -> Quantity:
        """What the maps hold."""
        return self.model.quantity

    def for_protocol(self, name: str, wanted: ModelInput) -> "Predictor":
        """Returns the predictor with the input and the views of an evaluation protocol."""
        return replace(
            self,
            input_size=self.input_size if wanted.input_size is None else wanted.input_size,
            fixed_size=wanted.fixed,
            flip=self.flip or wanted.flip,
            allow_not_finite=wanted.allow_not_finite and self.quantity.is_metric,
            window=self.window if wanted.window is None else wanted.window,
            stride=self.stride if wanted.stride is None else wanted.stride,
        )

    def prepare(self, image: NDArray[np.uint8], name: str) -> tuple[Tensor, ...]:
        """Returns the inputs of a `PreparedImage`, [3 h w] float32 for each scale.

        Args:
            image: [height width 3] uint8 RGB.
            name: name of the image, for messages.

        Raises:
            ValueError: the input of the image would be too large.
        """
        try:
            if self.fixed_size is not None:
                return (self.fixed_size.prepare(image, self.model.preprocessing),)
            inputs = [self.model.preprocessing.prepare(image, size) for size in self._sizes()]
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        if self.margin:
            inputs = [F.pad(each[None], (self._margin_px,) * 4, mode="reflect")[0] for each in inputs]
        return tuple(inputs)

    @torch.inference_mode()
    def predict(self, images: Sequence[PreparedImage]) -> Tensor:
        """Returns the maps [b h w] float32 of images of equal shapes, on the device of the model; for a model
        of classes, logits [b k h w].

        Raises:
            ValueError: memory is not enough, or a map is not finite (see `allow_not_finite`).
        """
        maps = self.maps_of(images)
        if not self.allow_not_finite:
            for image, finite in zip(images, finite_maps(maps).tolist(), strict=True):
                if not finite:
                    self._refuse(image.name)
        return maps

    @torch.inference_mode()
    def launch(
        self,
        images: Sequence[PreparedImage],
        finish: Callable[[Tensor, PreparedImage], Tensor],
        note_seconds: Callable[[float], object] | None = None,
    ) -> list[Pending]:
        """Begins to predict images of equal shapes; on a GPU it returns before the results are there.

        Args:
            finish: makes the result of an image from its map [h w], or logits [k h w], on the device.
            note_seconds: see `Pending`.

        Returns:
            The result of each image, for which any thread may wait. Waiting raises ValueError if the map is
            not finite (see `allow_not_finite`).

        Raises:
            ValueError: memory is not enough.
        """
        clock = DeviceClock(self.device)
        maps = self.maps_of(images)
        results = [finish(values, image) for values, image in zip(maps, images, strict=True)]
        batch = Launched(results, finite_maps(maps), clock)
        refusals = [None if self.allow_not_finite else partial(self._refuse, each.name) for each in images]
        return [Pending(batch, i, refuse, note_seconds) for i, refuse in enumerate(refusals)]

    def launch_resized(self, images: Sequence[PreparedImage]) -> list[Pending]:
        """Begins to predict what `predict_resized` yields; see `launch`."""
        return self.launch(images, self._resized)

    def maps_of(self, images: Sequence[PreparedImage]) -> Tensor:
        """Returns the maps [b h w], or logits [b k h w], averaged over views, finite or not."""
        views = []
        try:
            for inputs in zip(*(image.inputs for image in images), strict=True):
                batch = stacked(inputs, self.device)  # [b 3 h w]
                views.append(self._forward(batch))
                if self.flip:
                    views.append(self._forward(batch.flip(-1)).flip(-1))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            h, w = images[0].inputs[0].shape[1:]
            raise ValueError(
                f"not enough memory for {counted(len(images), 'image')} of {h} x {w} pixels at once: lower "
                "batch_size or input_size"
            ) from None
        if self.quantity.kind == "classes":
            return average_classes(views, self.align_corners)
        return average(views, align=self.quantity.kind == "disparity")

    def _refuse(self, name: str) -> None:
        raise ValueError(f"{name}: the prediction of {self.label} is not finite: try precision=fp32")

    def predict_resized(self, images: Sequence[PreparedImage]) -> Iterator[NDArray[np.float32]]:
        """Yields the map [height width] float32 of each image, at the image's own size; for a model of
        classes, the class numbers, uint8. See `predict`.
        """
        for values, image in zip(self.predict(images), images, strict=True):
            yield self._resized(values, image).cpu().numpy()

    def _resized(self, values: Tensor, image: PreparedImage) -> Tensor:
        """Returns a map [h w], or the numbers of classes of logits [k h w], at the image's own size."""
        if self.quantity.kind == "classes":
            return class_map(values, image.size, self.align_corners)
        return resize_map(values, image.size)

    def class_numbers(self, logits: Tensor, size: tuple[int, int]) -> NDArray[Any]:
        """Returns the most likely class [height width] uint8 from logits [k h w], enlarged first."""
        return class_map(logits, size, self.align_corners).cpu().numpy()

    @property
    def align_corners(self) -> bool:
        """How logits of classes are enlarged; see `models.heads.classes.ClassesHead`."""
        return bool(getattr(self.model.head, "align_corners", True))

    @property
    def _margin_px(self) -> int:
        return self.margin * self.model.preprocessing.multiple

    def describe_size(self) -> str:
        """Returns the input size in words, with the sides that are used where they differ from it."""
        preprocessing = self.model.preprocessing
        used = [preprocessing.shorter_side(size) for size in self._sizes()]
        if used == [self.input_size]:
            return f"input_size={self.input_size}"
        sides = " and ".join(map(str, dict.fromkeys(used)))
        return f"input_size={self.input_size} (shorter side {sides}: multiples of {preprocessing.multiple})"

    def _maps(self, batch: Tensor) -> Tensor:
        """Maps [b h w], or logits [b k h w] of windows that overlap, of normalised inputs [b 3 h w]."""
        if self.window is None or self.quantity.kind != "classes":
            return self.forward(self.model, batch, self.amp)
        window = self.model.preprocessing.shorter_side(self.window)
        stride = self.stride or max(1, window * 2 // 3)
        h, w = batch.shape[-2:]
        sides = min(window, h), min(window, w)
        total, covered = None, batch.new_zeros(h, w)
        for top in window_starts(h, sides[0], stride):
            for left in window_starts(w, sides[1], stride):
                box = (..., slice(top, top + sides[0]), slice(left, left + sides[1]))
                logits = self.forward(self.model, batch[box], self.amp)  # [b k h w]
                if total is None:
                    total = logits.new_zeros(*logits.shape[:2], h, w)
                total[box] += logits
                covered[box] += 1
        assert total is not None
        return total / covered.to(total.device)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    def _sizes(self) -> list[int]:
        return [round(self.input_size * scale) for scale in self.scales]

    def _forward(self, batch: Tensor) -> Tensor:
        """Maps [b h w] float32 of inputs [b 3 h w]."""
        if batch.dtype == torch.uint8:
            batch = self.model.preprocessing.normalise(batch)
        maps = self._maps(batch)
        m, (h, w) = self._margin_px, maps.shape[-2:]
        return maps[..., m : h - m, m : w - m]


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch has no memory left, on a GPU or the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
