"""depthany: train, run and export Depth Anything models."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from depthany.models.files.loading import load_model
    from depthany.models.model import DenseModel

__all__ = ["DenseModel", "load_model"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports the models when they are first used: they import timm, which takes seconds."""
    if name == "DenseModel":
        from depthany.models.model import DenseModel

        return DenseModel
    if name == "load_model":
        from depthany.models.files.loading import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
