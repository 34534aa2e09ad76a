"""An exported file, or its weights, in place of its model, so that it can be scored in the same way."""

from collections.abc import Callable

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from depthany.models.model import DenseModel
from depthany.models.output import Prediction, Quantity
from depthany.models.preprocess import Preprocessing


class ExportedModel(nn.Module):
    """Computes maps by an exported file, an image at a time.

    Args:
        model: the model that was exported.
        compute: returns the map of a normalised image [1 3 h w] float32.

    Attributes:
        quantity, preprocessing, input_size: see `DenseModel`.
    """

    quantity: Quantity
    preprocessing: Preprocessing

    def __init__(self, model: DenseModel, compute: Callable[[Tensor], NDArray]) -> None:
        super().__init__()
        self.quantity, self.preprocessing, self.input_size = (
            model.quantity,
            model.preprocessing,
            model.input_size,
        )
        self.compute = compute
        self.__dict__["head"] = model.head  # tells how logits are enlarged; no part of this module
        self.place = nn.Parameter(torch.zeros(()), False)  # says where inputs go: to the CPU, in float32

    def forward(self, image: Tensor) -> Prediction:
        """Returns maps [b h w], or [b k h w] class logits, of image [b 3 h w], which is normalised."""
        return Prediction(torch.cat([torch.from_numpy(self.compute(each[None])) for each in image]))
