"""Writes a model in the formats of other programs, and compares what it wrote with the model."""

from collections.abc import Callable
from pathlib import Path

import torch

from depthany.models.files.huggingface import save_huggingface
from depthany.models.files.loading import load_model
from depthany.models.files.official import save_official
from depthany.models.model import DenseModel

DTYPES = {"float32": torch.float32, "float16": torch.float16}
# Largest difference to PyTorch's float32 map, as a share of its range, with which a graph is kept.
TOLERANCE = {"float32": 1e-4, "float16": 0.05}
ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def write_onnx(model: DenseModel, path: Path, dtype: str) -> None:
    """Writes an ONNX graph for any batch, height and width.

    Raises:
        ValueError: onnxruntime computes something else with it than PyTorch with the model.
    """
    from depthany.models.files.onnx import drift, save_onnx

    save_onnx(model, path, DTYPES[dtype])
    rows = drift(model, path)
    for row in rows:
        batch, height, width = row["shape"]
        print(
            f"{batch} x 3 x {height} x {width}: {dtype} in onnxruntime against float32 in PyTorch, largest "
            f"difference {row['max']:.2e} of the map's range, mean {row['mean']:.2e}"
        )
    worst = max(row["max"] for row in rows)
    if worst > TOLERANCE[dtype]:
        raise ValueError(
            f"the graph disagrees with the model by {worst:.2e} of the map's range, more than "
            f"{TOLERANCE[dtype]:g}, and was not kept"
            + (
                "; use dtype=float32"
                if dtype == "float16"
                else "; try another version of torch or onnxscript"
            )
        )


def write_huggingface(model: DenseModel, folder: Path, dtype: str) -> None:
    """Writes a folder that transformers' `AutoModelForDepthEstimation.from_pretrained` loads."""
    save_huggingface(model, folder)
    _require_equal(model, load_model(folder))


def write_official(model: DenseModel, path: Path, dtype: str) -> None:
    """Writes a file that the released `run.py` loads."""
    save_official(model, path)
    _require_equal(
        model, load_model(path, taps=model.config["encoder"]["taps"], max_depth_m=model.quantity.max_depth_m)
    )


FORMATS: dict[str, Callable[[DenseModel, Path, str], None]] = {
    "onnx": write_onnx,
    "huggingface": write_huggingface,
    "official": write_official,
}
# Program that reads a format, and its pos_interpolation.
READERS = {"huggingface": ("transformers", "size"), "official": ("the released code", "official")}
SUFFIXES = {"onnx": ".onnx", "huggingface": "", "official": ".pth"}  # "": a folder


def _require_equal(model: DenseModel, loaded: DenseModel) -> None:
    """Raises ValueError if a weight is not the same after it was written and loaded."""
    found, expected = loaded.state_dict(), model.state_dict()
    different = [
        name for name in expected if name not in found or not torch.equal(found[name], expected[name])
    ]
    if different:
        raise ValueError(
            f"{len(different)} weights came back changed, {', '.join(different[:3])}: nothing was kept"
        )
