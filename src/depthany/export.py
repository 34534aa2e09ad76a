"""Write a model for other programs: `python -m depthany.export checkpoint=... format=onnx out=...`."""

import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from omegaconf import DictConfig

from depthany.config.entry import require, run_entry, typed
from depthany.config.schema import ExportSettings
from depthany.models.files.huggingface import save_huggingface
from depthany.models.files.loading import load_model
from depthany.models.files.official import save_official
from depthany.models.model import DenseModel

DTYPES = {"float32": torch.float32, "float16": torch.float16}
# Largest difference to PyTorch's float32 map, as a share of its range, with which a graph is kept.
TOLERANCE = {"float32": 1e-4, "float16": 0.05}
ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
HUGGINGFACE_FILES = {"config.json", "model.safetensors", "preprocessor_config.json"}


def write_onnx(model: DenseModel, path: Path, dtype: str) -> None:
    """Graph for any batch, height and width, kept only if onnxruntime computes with it what PyTorch does."""
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
    """Folder for `AutoModelForDepthEstimation.from_pretrained` and `pipeline("depth-estimation", ...)`."""
    save_huggingface(model, folder)
    _require_equal(model, load_model(folder))


def write_official(model: DenseModel, path: Path, dtype: str) -> None:
    """File that the released `run.py` loads."""
    save_official(model, path)
    _require_equal(
        model, load_model(path, taps=model.config["encoder"]["taps"], max_depth_m=model.quantity.max_depth_m)
    )


FORMATS: dict[str, Callable[[DenseModel, Path, str], None]] = {
    "onnx": write_onnx,
    "huggingface": write_huggingface,
    "official": write_official,
}
# Who reads a format, and the pos_interpolation there.
READERS = {"huggingface": ("transformers", "size"), "official": ("the released code", "official")}
SUFFIXES = {"onnx": ".onnx", "huggingface": "", "official": ".pth"}  # "": a folder


def _require_equal(model: DenseModel, loaded: DenseModel) -> None:
    found, expected = loaded.state_dict(), model.state_dict()
    different = [
        name for name in expected if name not in found or not torch.equal(found[name], expected[name])
    ]
    if different:
        raise ValueError(
            f"{len(different)} weights came back changed, {', '.join(different[:3])}: nothing was kept"
        )


def check(cfg: DictConfig) -> DictConfig:
    """The configuration with its types checked; finds what the user can mend before a model is loaded."""
    cfg = typed(cfg, ExportSettings)
    require(cfg)
    for key, table in (("format", FORMATS), ("dtype", DTYPES)):
        if cfg[key] not in table:
            raise ValueError(f"unknown {key} {cfg[key]!r}; choose from {', '.join(table)}")
    if cfg.dtype != "float32" and cfg.format != "onnx":
        raise ValueError(f"dtype={cfg.dtype} is for format=onnx; {cfg.format} keeps the model's own float32")
    missing = [name for name in ONNX_PACKAGES if not importlib.util.find_spec(name)]
    if cfg.format == "onnx" and missing:
        raise ValueError(f"format=onnx needs {', '.join(missing)}: pip install -e '.[onnx]'")
    _check_out(Path(cfg.out), cfg.format, cfg.overwrite)
    return cfg


def _check_out(out: Path, format_name: str, overwrite: bool) -> None:
    """Refuse a place that is taken, or where a folder of something else would be deleted."""
    suffix = SUFFIXES[format_name]
    if suffix and out.suffix != suffix:
        raise ValueError(f"out={out}: format={format_name} writes a file that ends in {suffix}")
    if not out.exists() or (out.is_dir() and not suffix and not any(out.iterdir())):
        return
    if out.is_dir() == bool(suffix):
        raise ValueError(f"out={out} is a {'folder' if suffix else 'file'}; pass another path")
    if not overwrite:
        raise ValueError(f"out={out} exists; pass overwrite=true to replace it, or another path")
    if out.is_dir() and (foreign := sorted({path.name for path in out.iterdir()} - HUGGINGFACE_FILES)):
        raise ValueError(
            f"out={out} holds more than an export, {foreign[0]}; it is not replaced: pass another path"
        )


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A path to write to; what is written takes the place of `out` at the end, or vanishes with an exception.

    Files whose names begin with that of `out` (weights of a large graph) come along.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            yield Path(folder) / out.name
            for item in sorted(Path(folder).iterdir(), reverse=True):  # model.onnx after model.onnx.data
                _flush(item)
                target = out.with_name(item.name)
                if target.is_dir():
                    os.replace(target, Path(folder) / f"{item.name}.replaced")
                os.replace(item, target)
    except OSError as error:
        raise ValueError(f"cannot write {out}: {error.strerror or error}; nothing was changed") from error


def _flush(item: Path) -> None:
    for path in [item, *item.rglob("*")]:
        if path.is_file():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())


def main() -> None:
    """Console script `depthany-export`."""
    sys.exit(run_entry("export", run, literal=("checkpoint", "out")))


def run(cfg: DictConfig) -> int:
    """Load the model, write it, compare, put it in place; the exit code."""
    cfg = check(cfg)
    model = load_model(cfg.checkpoint, taps=cfg.taps, max_depth_m=cfg.max_depth)
    with staged(Path(cfg.out)) as place:
        FORMATS[cfg.format](model, place, cfg.dtype)
    encoder = model.config["encoder"]
    print(f"{cfg.format} of {model.encoder.label} ({model.quantity.describe()}): {cfg.out}")
    if cfg.format in READERS and READERS[cfg.format][1] != encoder["pos_interpolation"]:
        print(
            f"{READERS[cfg.format][0]} resamples position embeddings in another way than this model: equal "
            "maps for square images at the size of the stored embeddings, close ones elsewhere"
        )
    return 0


if __name__ == "__main__":
    main()
