"""Writes a model as TorchScript, which libtorch and `torch.jit.load` run without this package."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from depthany.models.files.onnx import GraphModel, description
from depthany.models.model import DenseModel

DESCRIPTION = "depthany.json"  # extra file inside the archive


class CheckedModel(nn.Module):
    """A traced model behind a check of its input's size, which a trace alone would not have.

    Args:
        traced: from [b 3 h w] to [b h w].
        multiple: both sides of an input are multiples of it.
        size: (height, width) of the only input size; None: any.
    """

    def __init__(self, traced: nn.Module, multiple: int, size: tuple[int, int] | None) -> None:
        super().__init__()
        self.traced, self.multiple = traced, multiple
        self.height, self.width = size or (0, 0)

    def forward(self, image: Tensor) -> Tensor:
        """Returns the map [b h w] float32 of a normalised image [b 3 h w] float32."""
        height, width = image.shape[-2], image.shape[-1]
        if self.height and (height != self.height or width != self.width):
            raise ValueError("the image has another size than this model was exported for")
        if height % self.multiple != 0 or width % self.multiple != 0 or height == 0 or width == 0:
            raise ValueError("a side of the image is not a multiple of the patch size: resize it first")
        return self.traced(image)


def save_torchscript(
    model: DenseModel,
    path: Path,
    dtype: torch.dtype = torch.float32,
    size: tuple[int, int] | None = None,
) -> None:
    """Writes a TorchScript file: an image [b 3 h w] float32, ImageNet-normalised, to a map [b h w] float32.

    The extra file "depthany.json" inside it says what preprocessing needs, see `onnx.description`.

    Args:
        dtype: type of weights and activations.
        size: (height, width) of the only input size; None: any multiples of the patch size.
    """
    multiple = model.preprocessing.multiple
    height, width = size or (3 * multiple, 4 * multiple)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about the checks of sizes
        graph = GraphModel(model, dtype, size).eval()
        traced = torch.jit.trace(graph, (torch.zeros(2, 3, height, width),), check_trace=False)
        scripted = torch.jit.script(CheckedModel(traced, multiple, size).eval())
    scripted.save(str(path), _extra_files={DESCRIPTION: json.dumps(description(model, size))})


def in_torchscript(path: Path) -> Callable[[Tensor], NDArray]:
    """Returns a function that computes the map of an image by a TorchScript file, for `onnx.drift`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated in favour of torch.export
        loaded = torch.jit.load(str(path))

    def compute(image: Tensor) -> NDArray:
        with torch.inference_mode():
            result: NDArray = loaded(image).numpy()
        return result

    return compute
