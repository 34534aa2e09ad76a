"""depthany: train, run and export Depth Anything models."""

from depthany.models.depth_model import DepthModel
from depthany.models.loading import load_model

__all__ = ["DepthModel", "load_model"]
__version__ = "0.1.0"
