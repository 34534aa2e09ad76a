"""Writes a model in the formats of other programs, and compares what it wrote with the model."""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from depthany.models.atrous_encoder import AtrousEncoder
from depthany.models.files.coreml import in_torch, save_coreml
from depthany.models.files.huggingface import FOLDER_FILES, save_huggingface
from depthany.models.files.loading import load_model
from depthany.models.files.mobilenet_v2 import require_mobilenet_v2, save_mobilenet_v2
from depthany.models.files.official import check_official, save_official
from depthany.models.files.onnx import OPSET, check_sizes, drift, in_onnxruntime, save_onnx
from depthany.models.files.released import require_depth_anything
from depthany.models.files.small_onnx import save_int8, strip
from depthany.models.files.torchscript import in_torchscript, save_torchscript
from depthany.models.model import DenseModel

DTYPES = {"float32": torch.float32, "float16": torch.float16}
PRECISIONS = ("fp32", "fp16", "int8")
# A graph is kept if its map differs from PyTorch's float32 map by at most this share of the range.
TOLERANCE = {"float32": 1e-4, "float16": 0.05}
ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


@dataclass(frozen=True)
class ExportOptions:
    """What the user chose, apart from the format.

    Attributes:
        dtype: type of the stored weights, a name in `DTYPES`, where no `precision` is given.
        precision: fp32, fp16 or int8, of a small file that is scored beside the float32 one.
        calibration: returns inputs [1 3 h w] float32 by which int8 finds the ranges of activations.
        size: (height, width) of the only input size of a graph; None: any.
        batch: the only number of images of an ONNX graph; None: any.
        opset: version of the ONNX operators.
    """

    dtype: str = "float32"
    precision: str | None = None
    calibration: Callable[[], Iterable[NDArray]] | None = None
    size: tuple[int, int] | None = None
    batch: int | None = None
    opset: int = OPSET


def one_size(model: DenseModel, format_name: str, options: ExportOptions) -> ExportOptions:
    """Returns the options with the size of a graph that takes only one: the model's own, as a square.

    Such are Core ML and 8-bit files, and dilated CNNs, whose padding would depend on the size.
    """
    is_cnn = isinstance(model.encoder, AtrousEncoder) and "size" in FORMATS[format_name].options
    if options.size is not None or not (is_cnn or format_name == "coreml" or options.precision == "int8"):
        return options
    side = model.preprocessing.shorter_side(model.input_size)
    return replace(options, size=(side, side))


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
    if model.quantity.kind == "classes":
        require_mobilenet_v2(model)
    else:
        require_depth_anything(model, "huggingface")


def check_released(model: DenseModel, out: Path, options: ExportOptions) -> None:
    """Raises a ValueError if no released code reads such a model, or `out` is the name of another one."""
    check_official(model, out)


def write_onnx(model: DenseModel, path: Path, options: ExportOptions) -> None:
    """Writes an ONNX graph.

    Raises:
        ValueError: the graph's output in onnxruntime differs from the model's in PyTorch.
    """
    if options.precision is not None:
        write_small_onnx(model, path, options)
        return
    save_onnx(model, path, DTYPES[options.dtype], options.size, options.batch, options.opset)
    require_close(model, in_onnxruntime(path), "onnxruntime", options)


def write_small_onnx(model: DenseModel, path: Path, options: ExportOptions) -> None:
    """Writes an ONNX graph of `options.precision` without notes; the caller compares its scores."""
    dtype = torch.float16 if options.precision == "fp16" else torch.float32
    if options.precision != "int8":
        save_onnx(model, path, dtype, options.size, options.batch, options.opset)
        strip(path)
        return
    assert options.calibration is not None
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "float32.onnx"
        save_onnx(model, whole, dtype, options.size, options.batch, options.opset)
        save_int8(whole, path, options.calibration())


def write_coreml(model: DenseModel, path: Path, options: ExportOptions) -> None:
    """Writes a Core ML package."""
    assert options.size is not None
    save_coreml(model, path, options.precision or "fp32", options.size)


def in_coreml(path: Path, model: DenseModel, options: ExportOptions) -> Callable[[Tensor], NDArray]:
    """Returns a function that computes the map of an image by the weights of a Core ML package."""
    assert options.size is not None
    return in_torch(path, model, options.size)


def write_torchscript(model: DenseModel, path: Path, options: ExportOptions) -> None:
    """Writes a TorchScript file.

    Raises:
        ValueError: its output differs from the model's.
    """
    save_torchscript(model, path, DTYPES[options.dtype], options.size)
    require_close(model, in_torchscript(path), "TorchScript", options)


def write_huggingface(model: DenseModel, folder: Path, options: ExportOptions) -> None:
    """Writes a folder that transformers' `AutoModelForDepthEstimation` or, of classes,
    `MobileNetV2ForSemanticSegmentation` loads."""
    if model.quantity.kind == "classes":
        folder.mkdir(parents=True, exist_ok=True)
        save_mobilenet_v2(model, folder)
    else:
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
        suffix: suffix of its file or folder; "" for a folder of any name.
        check: raises a ValueError, before anything is written, if the format cannot hold the model.
        write: writes the model to a path and compares it with the model.
        options: the fields of `ExportOptions` that it takes.
        files: names in its folder; () for a file.
        compute: returns a function that computes the map of an image by a written file or its weights; None
            where no `precision` can be chosen.
        reader: the program that reads it where it resamples position embeddings in its own way, and the
            `pos_interpolation` of that program.
    """

    suffix: str
    check: Callable[[DenseModel, Path, ExportOptions], None]
    write: Callable[[DenseModel, Path, ExportOptions], None]
    options: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    compute: Callable[[Path, DenseModel, ExportOptions], Callable[[Tensor], NDArray]] | None = None
    reader: tuple[str, str] | None = None


FORMATS = {
    "onnx": Format(
        ".onnx",
        check_graph,
        write_onnx,
        ("dtype", "precision", "size", "batch", "opset"),
        compute=lambda path, model, options: in_onnxruntime(path),
    ),
    "coreml": Format(
        ".mlpackage",
        check_graph,
        write_coreml,
        ("precision", "size"),
        files=("Data", "Manifest.json"),
        compute=in_coreml,
    ),
    "torchscript": Format(".pt", check_graph, write_torchscript, ("dtype", "size")),
    "huggingface": Format(
        "", check_huggingface, write_huggingface, files=FOLDER_FILES, reader=("transformers", "size")
    ),
    "official": Format(".pth", check_released, write_official, reader=("the released code", "official")),
}


def require_close(
    model: DenseModel, compute: Callable[[Tensor], NDArray], program: str, options: ExportOptions
) -> None:
    """Prints how far an exported graph is from the model; raises a ValueError if that is too far."""
    try:
        rows: list[dict[str, Any]] = drift(model, compute, check_sizes(model, options.size, options.batch))
    except (RuntimeError, torch.jit.Error) as error:  # a trace that holds for one size only
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
