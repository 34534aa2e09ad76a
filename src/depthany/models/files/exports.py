"""Writes a model in the formats of other programs, and compares what it wrote with the model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from depthany.models.files.huggingface import save_huggingface
from depthany.models.files.loading import load_model
from depthany.models.files.official import check_official, save_official
from depthany.models.files.onnx import OPSET, check_sizes, drift, in_onnxruntime, save_onnx
from depthany.models.files.released import require_depth_anything
from depthany.models.files.torchscript import in_torchscript, save_torchscript
from depthany.models.model import DenseModel

DTYPES = {"float32": torch.float32, "float16": torch.float16}
# Largest difference to PyTorch's float32 map, as a share of its range, with which a graph is kept.
TOLERANCE = {"float32": 1e-4, "float16": 0.05}
ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


@dataclass(frozen=True)
class ExportOptions:
    """What the user chose, apart from the format.

    Attributes:
        dtype: of the stored weights, a name in `DTYPES`.
        size: (height, width) of the only input size of a graph; None: any.
        batch: the only number of images of an ONNX graph; None: any.
        opset: version of the ONNX operators.
    """

    dtype: str = "float32"
    size: tuple[int, int] | None = None
    batch: int | None = None
    opset: int = OPSET


def check_graph(model: DenseModel, out: Path, options: ExportOptions) -> None:
    """Raises a ValueError if the model does not take the fixed size."""
    multiple = model.preprocessing.multiple
    if options.size is not None and any(side % multiple for side in options.size):
        height, width = options.size
        nearest = [max(1, round(side / multiple)) * multiple for side in options.size]
        raise ValueError(
            f"size=[{height},{width}]: both sides must be multiples of {multiple}, the patch size of "
            f"{model.encoder.label}: the nearest is size=[{nearest[0]},{nearest[1]}]"
        )


def check_huggingface(model: DenseModel, out: Path, options: ExportOptions) -> None:
    """Raises a ValueError if a Hugging Face folder cannot hold the model."""
    require_depth_anything(model, "huggingface")


def check_released(model: DenseModel, out: Path, options: ExportOptions) -> None:
    """Raises a ValueError if no released code reads such a model, or `out` is the name of another one."""
    check_official(model, out)


def write_onnx(model: DenseModel, path: Path, options: ExportOptions) -> None:
    """Writes an ONNX graph.

    Raises:
        ValueError: onnxruntime computes something else with it than PyTorch with the model.
    """
    dtype = DTYPES[options.dtype]
    save_onnx(model, path, dtype, options.size, options.batch, options.opset)
    _require_close(model, in_onnxruntime(path), "onnxruntime", options)


def write_torchscript(model: DenseModel, path: Path, options: ExportOptions) -> None:
    """Writes a TorchScript file.

    Raises:
        ValueError: it computes something else than the model.
    """
    save_torchscript(model, path, DTYPES[options.dtype], options.size)
    _require_close(model, in_torchscript(path), "TorchScript", options)


def write_huggingface(model: DenseModel, folder: Path, options: ExportOptions) -> None:
    """Writes a folder that transformers' `AutoModelForDepthEstimation.from_pretrained` loads."""
    save_huggingface(model, folder)
    _require_equal(model, load_model(folder))


def write_official(model: DenseModel, path: Path, options: ExportOptions) -> None:
    """Writes a file that the released `run.py` loads."""
    save_official(model, path)
    taps, max_depth_m = model.config["encoder"]["taps"], model.config["head"].get("max_depth_m")
    _require_equal(model, load_model(path, taps=taps, max_depth_m=max_depth_m))


@dataclass(frozen=True)
class Format:
    """A format of exports.

    Attributes:
        suffix: of its file; "" for a folder.
        check: raises a ValueError, before anything is written, if the format cannot hold the model.
        write: writes the model to a path and compares it with the model.
        options: the fields of `ExportOptions` that it takes.
        reader: the program that reads it where it resamples position embeddings in its own way, and the
            `pos_interpolation` of that program.
    """

    suffix: str
    check: Callable[[DenseModel, Path, ExportOptions], None]
    write: Callable[[DenseModel, Path, ExportOptions], None]
    options: tuple[str, ...] = ()
    reader: tuple[str, str] | None = None


FORMATS = {
    "onnx": Format(".onnx", check_graph, write_onnx, ("dtype", "size", "batch", "opset")),
    "torchscript": Format(".pt", check_graph, write_torchscript, ("dtype", "size")),
    "huggingface": Format("", check_huggingface, write_huggingface, reader=("transformers", "size")),
    "official": Format(".pth", check_released, write_official, reader=("the released code", "official")),
}


def _require_close(
    model: DenseModel, compute: Callable[[Tensor], NDArray], program: str, options: ExportOptions
) -> None:
    """Prints how far an exported graph is from the model; raises a ValueError if that is too far."""
    try:
        rows: list[dict[str, Any]] = drift(model, compute, check_sizes(model, options.size, options.batch))
    except (RuntimeError, torch.jit.Error) as error:  # a trace that holds for one size alone
        reason = str(error).strip().rsplit("\n", 1)[-1]
        raise ValueError(
            f"{program} cannot run the graph at another size ({reason}); it was not kept"
            + ("" if options.size else ": pass size=[height,width] for a graph of one size")
        ) from error
    for row in rows:
        batch, height, width = row["shape"]
        print(
            f"{batch} x 3 x {height} x {width}: {options.dtype} in {program} against float32 in PyTorch, "
            f"largest difference {row['max']:.2e} of the map's range, mean {row['mean']:.2e}"
        )
    worst = max(row["max"] for row in rows)
    if worst > TOLERANCE[options.dtype]:
        other = "use dtype=float32" if options.dtype == "float16" else "try another version of torch"
        raise ValueError(
            f"the graph disagrees with the model by {worst:.2e} of the map's range, more than "
            f"{TOLERANCE[options.dtype]:g}, and was not kept; {other}"
        )


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
