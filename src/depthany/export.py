"""Write a model for other programs: `python -m depthany.export checkpoint=... format=onnx out=...`."""

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from depthany.config.checker import check_settings
from depthany.config.entry import run_entry
from depthany.config.schema import CheckpointSettings
from depthany.models.files.exports import DTYPES, FORMATS, ONNX_PACKAGES, ExportOptions
from depthany.models.files.huggingface import EXACT, FOLDER_FILES
from depthany.models.files.model_source import ModelSource
from depthany.models.files.official import released_stem
from depthany.models.model import DenseModel
from depthany.system.files import staged
from depthany.system.rules import setting


@dataclass
class ExportSettings(CheckpointSettings):
    """configs/export.yaml."""

    format: str = setting(choices=FORMATS)
    out: str = setting(filled=True)
    dtype: str = setting(choices=DTYPES)
    size: Any = None
    batch: int | None = setting(None, least=1)
    opset: int = setting(least=17, most=25)
    overwrite: bool = setting()

    def __post_init__(self) -> None:
        options, default = export_options(self), ExportOptions()
        taken = FORMATS[self.format].options
        for name in (each.name for each in fields(options) if each.name not in taken):
            if getattr(options, name) != getattr(default, name):
                others = [each for each, of in FORMATS.items() if name in of.options]
                raise ValueError(
                    f"{name}={getattr(self, name)} is for format={' or '.join(others)}; leave it out for "
                    f"format={self.format}"
                )


def export_options(settings: Any) -> ExportOptions:
    """Returns what the writers need of the settings; raises ValueError if `size` is no size."""
    return ExportOptions(settings.dtype, fixed_size(settings.size), settings.batch, settings.opset)


def fixed_size(size: Any) -> tuple[int, int] | None:
    """Returns (height, width) of the setting `size`: one number for a square, [height, width], or null."""
    if size is None:
        return None
    sides = [size, size] if isinstance(size, int) else list(size) if isinstance(size, Sequence) else []
    are_whole = all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides)
    if len(sides) != 2 or not are_whole:
        raise ValueError(f"size={size}: expected a number of pixels, [height,width], or null for any size")
    return sides[0], sides[1]


def main() -> None:
    """Runs the console script `depthany-export`."""
    sys.exit(run_entry("export", run))


def run(cfg: DictConfig) -> int:
    """Loads the model, writes and compares it, and moves the result to its place; returns the exit code."""
    cfg = check(cfg)
    model = ModelSource.of("checkpoint", cfg.checkpoint, cfg.taps, cfg.max_depth).load()
    form, out = FORMATS[cfg.format], Path(cfg.out)
    options = export_options(cfg)
    form.check(model, out, options)
    with staged(out) as place:
        form.write(model, place, options)
    print(f"{cfg.format} of {model.encoder.label} ({model.quantity.describe()}): {cfg.out}")
    for line in notes(model, cfg.format, out):
        print(line)
    return 0


def check(cfg: DictConfig) -> DictConfig:
    """Returns the configuration with the types of `ExportSettings`; finds mistakes before the work."""
    cfg = check_settings(cfg, ExportSettings)
    missing = [name for name in ONNX_PACKAGES if not importlib.util.find_spec(name)]
    if cfg.format == "onnx" and missing:
        raise ValueError(f"format=onnx needs {', '.join(missing)}: pip install -e '.[onnx]'")
    _check_out(Path(cfg.out), cfg.format, cfg.overwrite)
    return cfg


def notes(model: DenseModel, format_name: str, out: Path) -> list[str]:
    """Returns what the user of an exported file must know."""
    lines, reader = [], FORMATS[format_name].reader
    if reader is not None and reader[1] != model.config["encoder"]["pos_interpolation"]:
        lines.append(
            f"{reader[0]} resamples position embeddings in another way than this model: equal "
            "maps for square images at the size of the stored embeddings, close ones elsewhere"
        )
    if format_name == "huggingface":
        lines.append(
            "transformers resizes photos and maps in its own way (docs/exports.md); for our maps "
            "pass image_processor=AutoImageProcessor.from_pretrained"
            f"({str(out / EXACT)!r}, trust_remote_code=True)"
        )
    if format_name == "official" and out.stem != released_stem(model):
        taps, max_depth_m = model.config["encoder"]["taps"], model.config["head"].get("max_depth_m")
        metric = "" if max_depth_m is None else f" max_depth={max_depth_m:g}"
        lines.append(f"the name is none of the released ones: load it here with taps={taps}{metric}")
    return lines


def _check_out(out: Path, format_name: str, overwrite: bool) -> None:
    """Raises ValueError if `out` exists and must not be replaced, or has the wrong suffix."""
    suffix = FORMATS[format_name].suffix
    if suffix and out.suffix != suffix:
        raise ValueError(f"out={out}: format={format_name} writes a file that ends in {suffix}")
    if not out.exists() or (out.is_dir() and not suffix and not any(out.iterdir())):
        return
    if out.is_dir() == bool(suffix):
        raise ValueError(f"out={out} is a {'folder' if suffix else 'file'}; pass another path")
    if not overwrite:
        raise ValueError(f"out={out} exists; pass overwrite=true to replace it, or another path")
    if out.is_dir() and (foreign := sorted({path.name for path in out.iterdir()} - set(FOLDER_FILES))):
        raise ValueError(
            f"out={out} holds more than an export, {foreign[0]}; it is not replaced: pass another path"
        )


if __name__ == "__main__":
    main()
