"""A model with the views of each image that it averages over: mirrored, and at several sizes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from depthany.metrics.align import align_least_squares
from depthany.models.infer import resize_map
from depthany.models.model import DenseModel

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Predictor:
    """Predicts as `DenseModel.infer` does, in three steps that can overlap: prepare, predict, resize.

    Args:
        model: in eval mode, on its device; it computes in the type of its weights.
        input_size: pixels of the shorter side as the model sees it.
        scales: factors on `input_size`; one prediction for each.
        flip: predict the mirrored image too.
    """

    model: DenseModel
    input_size: int
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        for size in self._sizes():
            self.model.preprocessing.require_input_size(size)  # before anything is read

    @property
    def max_depth_m(self) -> float | None:
        """Largest depth of a metric model; None: it predicts disparity, known up to scale and shift."""
        return self.model.quantity.max_depth_m

    def prepare(self, image: NDArray[np.uint8]) -> list[Tensor]:
        """The model's inputs [3 h w], one for each scale, of an image [height width 3] uint8 RGB.

        Raises:
            ValueError: the image is too long to be predicted at this size.
        """
        return [self.model.preprocessing.prepare(image, size) for size in self._sizes()]

    @torch.inference_mode()
    def predict(self, prepared: Sequence[list[Tensor]]) -> Tensor:
        """[b h w] float32 of prepared images of equal shapes, on the device of the model: disparity, or depth
        in metres.

        Raises:
            ValueError: memory is not enough, or a prediction is not finite.
        """
        views = []
        try:
            for inputs in zip(*prepared, strict=True):
                batch = torch.stack(inputs)  # [b 3 h w]
                views.append(self._forward(batch))
                if self.flip:
                    views.append(self._forward(batch.flip(-1)).flip(-1))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise ValueError(
                f"memory is not enough for batch_size={len(prepared)} with input_size={self.input_size}: "
                "lower one of them"
            ) from None
        values = average(views, align=self.max_depth_m is None)
        if not torch.isfinite(values).all():
            raise ValueError("the prediction is not finite: try precision=fp32")
        return values

    def resize(self, values: Tensor, sizes: Sequence[Size]) -> list[NDArray[np.float32]]:
        """Predictions [height width] at the sizes of the images, of [b h w]."""
        return [resize_map(single, size).cpu().numpy() for single, size in zip(values, sizes, strict=True)]

    def _sizes(self) -> list[int]:
        return [round(self.input_size * scale) for scale in self.scales]

    def _forward(self, batch: Tensor) -> Tensor:
        weights = next(self.model.parameters())
        values: Tensor = self.model(batch.to(weights)).map
        return values.float()


def average(views: Sequence[Tensor], align: bool) -> Tensor:
    """Mean over views of the same images, at the size of the largest view.

    Args:
        views: [b h w] each, of sizes of their own.
        align: fit each view to the first by scale and shift, in least squares, before it counts: scale and
            shift of a disparity are of no meaning, and differ from view to view.

    Returns:
        [b h w]; of a single view, that view.
    """
    if len(views) == 1:
        return views[0]
    largest = max((view.shape[-2:] for view in views), key=lambda shape: shape[0] * shape[1])
    resized = [
        F.interpolate(view[:, None], largest, mode="bilinear", align_corners=True)[:, 0] for view in views
    ]
    if align:
        resized[1:] = [_fitted(view, resized[0]) for view in resized[1:]]
    return torch.stack(resized).mean(0)


def _fitted(view: Tensor, reference: Tensor) -> Tensor:
    everywhere = torch.ones_like(view, dtype=torch.bool)
    scale, shift, _ = align_least_squares(view, reference, everywhere)
    return scale[:, None, None].float() * view + shift[:, None, None].float()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch has no memory left, on a GPU or the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
