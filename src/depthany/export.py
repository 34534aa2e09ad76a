"""Write a model for other programs: `python -m depthany.export checkpoint=... format=onnx out=...`."""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from depthany.config.checker import check_settings
from depthany.config.entry import run_entry
from depthany.config.schema import CheckpointSettings
from depthany.models.files.exports import DTYPES, FORMATS, ONNX_PACKAGES, READERS, SUFFIXES
from depthany.models.files.loading import load_model
from depthany.system.files import staged
from depthany.system.rules import setting

HUGGINGFACE_FILES = {"config.json", "model.safetensors", "preprocessor_config.json"}


@dataclass
class ExportSettings(CheckpointSettings):
    """configs/export.yaml."""

    format: str = setting(choices=FORMATS)
    out: str = setting()
    dtype: str = setting(choices=DTYPES)
    overwrite: bool = setting()

    def __post_init__(self) -> None:
        if self.dtype != "float32" and self.format != "onnx":
            raise ValueError(
                f"dtype={self.dtype} is for format=onnx; {self.format} keeps the model's own float32"
            )


def main() -> None:
    """Runs the console script `depthany-export`."""
    sys.exit(run_entry("export", run))


def run(cfg: DictConfig) -> int:
    """Loads the model, writes and compares it, and moves the result to its place; returns the exit code."""
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


def check(cfg: DictConfig) -> DictConfig:
    """Returns the configuration with the types of `ExportSettings`; finds mistakes before the work."""
    cfg = check_settings(cfg, ExportSettings)
    missing = [name for name in ONNX_PACKAGES if not importlib.util.find_spec(name)]
    if cfg.format == "onnx" and missing:
        raise ValueError(f"format=onnx needs {', '.join(missing)}: pip install -e '.[onnx]'")
    _check_out(Path(cfg.out), cfg.format, cfg.overwrite)
    return cfg


def _check_out(out: Path, format_name: str, overwrite: bool) -> None:
    """Raises ValueError if `out` exists and must not be replaced, or has the wrong suffix."""
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


if __name__ == "__main__":
    main()
