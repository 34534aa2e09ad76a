"""Core ML packages: written and read back anywhere; only a Mac computes with them.

Source: coremltools 9 (extra `coreml`). A model goes through `torch.export`; its weights are float32, float16,
or 8-bit indices into 256 values per tensor, spread evenly from the smallest to the largest weight.
"""

import contextlib
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from depthany.models.files.onnx import GraphModel, description
from depthany.models.model import DenseModel
from depthany.system.packages import optional

DESCRIPTION = "depthany"  # key of the metadata
CLASS_MAP = "class"  # name of the output of a model of classes
LEAST_WEIGHTS = 2048  # of a tensor that is stored in 8 bits; smaller ones, biases among them, stay float16
NOTES = "executorch_debug_handle_mapping.json"  # for another runtime; nothing in the package refers to it


class CoreMLGraph(nn.Module):
    """A model of one size as it is stored: its map, or for classes the number of the best one."""

    def __init__(self, model: DenseModel, size: tuple[int, int]) -> None:
        super().__init__()
        self.net = GraphModel(model, torch.float32, size)
        self.is_classes = model.quantity.kind == "classes"

    def forward(self, image: Tensor) -> Tensor:
        """Returns the map [1 h w] float32, or classes [1 h w] int32, of an image [1 3 h w], normalised."""
        result: Tensor = self.net(image)
        return result.argmax(1).to(torch.int32) if self.is_classes else result


def save_coreml(model: DenseModel, path: Path, precision: str, size: tuple[int, int]) -> None:
    """Writes an `.mlpackage`: from `image` [1 3 h w], normalised, to `disparity`, `depth_m` or `class`.

    Args:
        precision: fp32, fp16 (weights and activations), or int8 (weights; activations are fp16).
        size: (height, width) of the input.

    Raises:
        ValueError: the package coremltools is missing.
    """
    ct, optimize = coremltools()
    graph = CoreMLGraph(model, size).eval()
    with torch.no_grad(), quiet():
        program = torch.export.export(graph, (torch.zeros(1, 3, *size),)).run_decompositions({})
        half = ct.precision.FLOAT32 if precision == "fp32" else ct.precision.FLOAT16
        package = ct.convert(
            program,
            inputs=[ct.TensorType(name="image", shape=(1, 3, *size))],
            outputs=[ct.TensorType(name=output_name(model))],
            minimum_deployment_target=ct.target.iOS16,
            compute_precision=half,
            skip_model_load=True,
        )
        if precision == "int8":
            options = optimize.OpPalettizerConfig(mode="uniform", nbits=8, weight_threshold=LEAST_WEIGHTS)
            package = optimize.palettize_weights(package, optimize.OptimizationConfig(options))
        package.user_defined_metadata[DESCRIPTION] = json.dumps(description(model, size, 1))
        package.save(str(path))
    (path / NOTES).unlink(missing_ok=True)


def output_name(model: DenseModel) -> str:
    """Returns the name of the output."""
    return CLASS_MAP if model.quantity.kind == "classes" else model.quantity.kind


def in_torch(path: Path, model: DenseModel, size: tuple[int, int]) -> Callable[[Tensor], NDArray]:
    """Returns a function that computes the map of an image by the weights of a package, for `onnx.drift`.

    PyTorch computes with them in float32, so activations in fp16 are not checked.

    Raises:
        ValueError: a tensor of the package is not one of the model's, or too many of them are missing.
    """
    graph = GraphModel(model, torch.float32, size).eval()
    put_weights(graph, read_weights(path))

    def compute(image: Tensor) -> NDArray:
        with torch.inference_mode():
            result: NDArray = graph(image).numpy()
        return result

    return compute


def read_weights(path: Path) -> dict[str, NDArray]:
    """Returns the weights of a package by their names, 8-bit ones as the values that they stand for."""
    ct, optimize = coremltools()
    with quiet():
        package = ct.models.MLModel(str(path), skip_model_load=True)
        whole = optimize.decompress_weights(package)
        # `get_weights_metadata` does this too, but fails where a constant is concatenated, as a CLS token
        reader = optional("coremltools.converters.mil.frontend.milproto.load", "format=coreml", "coreml")
        spec = whole.get_spec()
        program = reader.load(spec, spec.specificationVersion, whole.weights_dir)
    return {
        operation.name: np.asarray(operation.val.val)
        for function in program.functions.values()
        for operation in function.operations
        if operation.op_type == "const" and isinstance(operation.val.val, np.ndarray)
    }


@torch.no_grad()
def put_weights(graph: nn.Module, weights: dict[str, NDArray]) -> None:
    """Replaces weights of a graph by those of a package, which are named after them.

    Raises:
        ValueError: less than 99 % of the graph's weights are in the package.
    """
    own = {_plain(name): parameter for name, parameter in graph.named_parameters()}
    taken = 0
    for name, values in weights.items():
        parameter = own.get(_stem(name, own))
        if parameter is None or parameter.numel() != values.size:
            continue
        parameter.copy_(torch.from_numpy(values.astype(np.float32)).reshape(parameter.shape))
        taken += values.size
    total = sum(parameter.numel() for parameter in own.values())
    if taken < 0.99 * total:
        raise ValueError(
            f"{total - taken} of {total} weights are not in the package under their names: nothing was kept; "
            "use another version of coremltools"
        )


def _plain(name: str) -> str:
    return name.replace(".", "_")


def _stem(name: str, own: dict[str, Any]) -> str:
    """Returns the name of a weight in a package without what coremltools puts around it."""
    stem = re.sub(r"(_to_fp16|_palettized|_promoted)+$", "", name.removeprefix("p_").removeprefix("net_"))
    return stem if stem in own else ""


def coremltools() -> tuple[Any, Any]:
    """Returns coremltools and its part that compresses; raises a `ValueError` if it is missing."""
    with quiet():
        ct = optional("coremltools", "format=coreml", "coreml")
        return ct, optional("coremltools.optimize.coreml", "format=coreml", "coreml")


@contextmanager
def quiet() -> Iterator[None]:
    """Silences coremltools, which warns of versions and of the Mac it misses, and draws progress bars."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
