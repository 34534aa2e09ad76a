"""Small ONNX files: without the exporter's notes, and with 8-bit weights and activations.

Source: onnxruntime's quantiser. Static, in QDQ format with int8 weights and activations, is what it advises
for CNNs; dynamic quantisation is several times slower than float32 there, and is not offered. Weights have a
scale per channel: with one per tensor, depthwise convolutions can lose all accuracy.
"""

import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Operators that compute in 8 bits: those with weights, and activations that fall away in their ranges
QUANTISED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Relu", "Clip")
OPTIONS = {
    "QuantizeBias": False,  # as int32 they are as large as in float32, and need a scale each
    "MatMulConstBOnly": True,  # not the products of attention, which have no weights
}


def strip(path: Path) -> None:
    """Removes from an ONNX file what no program needs: notes on its nodes, and shapes of their results."""
    import onnx

    graph = onnx.load(path)
    for node in graph.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*graph.graph.input, *graph.graph.output, *graph.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    del graph.graph.value_info[:]
    onnx.save(graph, path)


def save_int8(float_path: Path, path: Path, images: Iterable[NDArray[np.float32]]) -> None:
    """Writes an 8-bit version of an ONNX file of one size.

    Args:
        float_path: the file in float32.
        images: inputs of the graph [1 3 h w], by which the ranges of activations are found (smallest and
            largest value).
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    metadata = {each.key: each.value for each in onnx.load(float_path).metadata_props}
    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(float_path, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            path,
            _reader(images),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            extra_options=OPTIONS,
        )
    strip(path)
    graph = onnx.load(path)
    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, metadata)
    onnx.save(graph, path)


def _reader(images: Iterable[NDArray[np.float32]]) -> Any:
    """Returns onnxruntime's reader of calibration inputs."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.images: Iterator[NDArray[np.float32]] = iter(images)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            image = next(self.images, None)
            return None if image is None else {"image": image}

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences what the quantiser says about its own parts; the result is scored afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
