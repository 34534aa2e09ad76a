"""Metric depth through a sigmoid: the head of Depth Anything V2's metric models."""

from typing import ClassVar

import torch
from torch import Tensor

from depthany.models.heads.head import OutputConvolutions
from depthany.models.output import Quantity, require_max_depth


class MetricSigmoidHead(OutputConvolutions):
    """Depth in metres: a sigmoid times `max_depth_m` (arXiv 2406.09414). It starts at half of `max_depth_m`.

    Args:
        features: channels F of the finest fused map.
        max_depth_m: metres at the far end: 20 indoors, 80 outdoors in the released models.
    """

    borrows: ClassVar = {"relative": ("conv1", "conv2")}  # conv3 gives disparity there

    def __init__(self, features: int, max_depth_m: float) -> None:
        require_max_depth(max_depth_m)
        super().__init__(features, last_bias=0.0)
        self.config = {"max_depth_m": max_depth_m}
        self.max_depth_m, self.quantity = max_depth_m, Quantity("depth_m", max_depth_m)

    def activate(self, last: Tensor) -> Tensor:
        """Depth in metres of the last convolution's output [b h w]."""
        return torch.sigmoid(last) * self.max_depth_m
