"""The parts that a model can be built from. A plug-in adds rows to these tables."""

from collections.abc import Callable
from typing import Any

from depthany.models.atrous_encoder import AtrousEncoder
from depthany.models.dinov2 import Dinov2
from depthany.models.dpt import DPT
from depthany.models.heads.classes import DptClassesHead, LinearClassesHead
from depthany.models.heads.deeplab import DeepLabHead
from depthany.models.heads.metric_bins import MetricBinsHead
from depthany.models.heads.metric_bins_nk import MetricBinsNKHead
from depthany.models.heads.metric_sigmoid import MetricSigmoidHead
from depthany.models.heads.relative import RelativeHead
from depthany.models.levels import Levels
from depthany.models.timm_encoder import TimmEncoder

# name -> class. An encoder takes its own arguments; before theirs, a decoder takes the encoder's `widths` and
# `strides`, and a head the decoder's `features`.
ENCODERS: dict[str, Callable[..., Any]] = {
    "dinov2": Dinov2,
    "timm": TimmEncoder,
    "atrous": AtrousEncoder,
}
DECODERS: dict[str, Callable[..., Any]] = {"dpt": DPT, "levels": Levels}
HEADS: dict[str, Callable[..., Any]] = {
    "relative": RelativeHead,
    "metric_sigmoid": MetricSigmoidHead,
    "metric_bins": MetricBinsHead,
    "metric_bins_nk": MetricBinsNKHead,
    "classes_linear": LinearClassesHead,
    "classes_dpt": DptClassesHead,
    "classes_deeplab": DeepLabHead,
}
