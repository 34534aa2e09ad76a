"""The command `export`: writes a model for other programs."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from depthany.config.checker import check_settings
from depthany.config.entry import config_dir
from depthany.config.schema import CheckpointSettings
from depthany.evaluation.protocol_files import choose
from depthany.evaluation.small_files import Trial, evenly, write_small
from depthany.inference.sources import find_sources
from depthany.models.files.exports import (
    DTYPES,
    FORMATS,
    ONNX_PACKAGES,
    PRECISIONS,
    ExportOptions,
    one_size,
)
from depthany.models.files.huggingface import EXACT
from depthany.models.files.model_source import ModelSource
from depthany.models.files.official import released_stem
from depthany.models.model import DenseModel
from depthany.system.files import staged
from depthany.system.packages import how_to_install
from depthany.system.rules import setting, split_words

EXAMPLE_IMAGES = "data/sample/labeled/train/images"
COREML_NOTE = (
    "Core ML runs only on a Mac or an iPhone: the scores above are those of the file's weights, read back "
    "into PyTorch. Activations in fp16 are not checked, so compare some maps on the device"
)


@dataclass
class ExportSettings(CheckpointSettings):
    """configs/export.yaml."""

    format: str = setting(choices=FORMATS)
    out: str = setting(filled=True)
    dtype: str = setting(choices=DTYPES)
    precision: str | None = setting(None, choices=PRECISIONS)
    calibration: str | None = setting(None, filled=True)
    calibration_images: int = setting(128, least=1)
    protocols: Any = setting(None, words=True)
    roots: dict[str, str | None] = field(default_factory=dict)
    images: str | None = setting(None, filled=True)
    limit: int | None = setting(None, least=1)
    max_loss: float = setting(1.0, least=0)
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
        self._check_small()

    def _check_small(self) -> None:
        """Raises ValueError if settings of small files contradict one another."""
        if self.precision is not None and self.dtype != ExportOptions().dtype:
            raise ValueError(f"dtype={self.dtype} precision={self.precision}: give only one of them")
        if self.precision == "int8" and self.format == "onnx" and self.calibration is None:
            raise ValueError(
                "precision=int8 finds the ranges of activations on training images: pass calibration=FOLDER, "
                f"such as calibration={EXAMPLE_IMAGES}"
            )
        if self.calibration is not None and (self.precision, self.format) != ("int8", "onnx"):
            raise ValueError(
                f"calibration={self.calibration} is for format=onnx precision=int8: leave it out"
            )
        scored = {"protocols": self.protocols, "images": self.images, "limit": self.limit}
        for key, value in scored.items():
            if value is not None and self.precision is None:
                raise ValueError(
                    f"{key}={value} scores a file of precision=fp32, fp16 or int8: pass precision"
                )


def export_options(settings: Any) -> ExportOptions:
    """Returns the settings that the writers need; raises ValueError if `size` is not a size."""
    return ExportOptions(
        settings.dtype, settings.precision, None, fixed_size(settings.size), settings.batch, settings.opset
    )


def fixed_size(size: Any) -> tuple[int, int] | None:
    """Returns (height, width) of the setting `size`: one number for a square, [height, width], or null."""
    if size is None:
        return None
    sides = [size, size] if isinstance(size, int) else list(size) if isinstance(size, Sequence) else []
    are_whole = all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides)
    if len(sides) != 2 or not are_whole:
        raise ValueError(f"size={size}: expected a number of pixels, [height,width], or null for any size")
    return sides[0], sides[1]


def run(cfg: DictConfig) -> int:
    """Loads the model, writes and compares it, and moves the result to its place; returns the exit code."""
    cfg = check(cfg)
    model = ModelSource.of("checkpoint", cfg.checkpoint, cfg.taps, cfg.max_depth).load()
    form, out = FORMATS[cfg.format], Path(cfg.out)
    options = one_size(model, cfg.format, export_options(cfg))
    form.check(model, out, options)
    if cfg.format == "coreml" or options.precision is not None:
        options = replace(options, precision=options.precision or "fp32")
        write_small(model, cfg.format, out, options, trial_of(cfg))
    else:
        with staged(out) as place:
            form.write(model, place, options)
    print(f"{cfg.format} of {model.encoder.label} ({model.quantity.describe()}): {cfg.out}")
    for line in notes(model, cfg.format, out):
        print(line)
    return 0


def trial_of(cfg: DictConfig) -> Trial:
    """Returns the protocols and images that score a small file; raises ValueError if one is missing."""
    known = OmegaConf.load(config_dir() / "evaluate.yaml")
    roots = OmegaConf.create({**dict.fromkeys(known.roots), **cfg.roots})
    words = [] if cfg.protocols is None else split_words("protocols", cfg.protocols)
    chosen = choose(words, roots, OmegaConf.create({}))[0] if words else []
    return Trial(
        cfg.max_loss,
        chosen,
        _paths("images", cfg.images, cfg.out),
        cfg.limit,
        evenly(_paths("calibration", cfg.calibration, cfg.out), cfg.calibration_images),
    )


def _paths(key: str, images: str | None, out: str) -> list[Path]:
    """Returns the images that a setting names; none for None. Raises ValueError if there are only videos."""
    if images is None:
        return []
    paths = [source.path for source in find_sources(images, Path(out)) if not source.is_video]
    if not paths:
        raise ValueError(f"{key}={images} holds only videos: expected images")
    return paths


def check(cfg: DictConfig) -> DictConfig:
    """Returns the configuration with the types of `ExportSettings`; finds mistakes before the work."""
    cfg = check_settings(cfg, ExportSettings)
    missing = [name for name in ONNX_PACKAGES if not importlib.util.find_spec(name)]
    if cfg.format == "onnx" and missing:
        raise ValueError(f"format=onnx needs {', '.join(missing)}: {how_to_install('onnx')}")
    if cfg.format == "coreml" and not importlib.util.find_spec("coremltools"):
        raise ValueError(f"format=coreml needs coremltools: {how_to_install('coreml')}")
    _check_out(Path(cfg.out), cfg.format, cfg.overwrite)
    return cfg


def notes(model: DenseModel, format_name: str, out: Path) -> list[str]:
    """Returns what the user of an exported file must know."""
    lines, reader = [], FORMATS[format_name].reader
    if format_name in ("official", "huggingface") and model.trained_on and model.trained_on.canonical:
        lines.append(f"the format cannot say it: predictions are {model.trained_on.unit()}")
    if reader is not None and reader[1] != model.config["encoder"].get("pos_interpolation", reader[1]):
        lines.append(
            f"{reader[0]} resamples position embeddings differently from this model: its maps are "
            "equal for square images at the size of the stored embeddings, and close at other sizes"
        )
    if format_name == "coreml":
        lines.append(COREML_NOTE)
    if format_name == "huggingface" and model.quantity.kind != "classes":
        lines.append(
            "transformers resizes photos and maps in its own way (docs/exports.md); for our maps "
            "pass image_processor=AutoImageProcessor.from_pretrained"
            f"({str(out / EXACT)!r}, trust_remote_code=True)"
        )
    if format_name == "official" and out.stem != released_stem(model):
        taps, max_depth_m = model.config["encoder"]["taps"], model.config["head"].get("max_depth_m")
        metric = "" if max_depth_m is None else f" max_depth={max_depth_m:g}"
        lines.append(f"the name is not that of a released model: load it here with taps={taps}{metric}")
    return lines


def _check_out(out: Path, format_name: str, overwrite: bool) -> None:
    """Raises ValueError if `out` exists and must not be replaced, or has the wrong suffix."""
    suffix, files = FORMATS[format_name].suffix, FORMATS[format_name].files
    if suffix and out.suffix != suffix:
        what = "folder" if files else "file"
        raise ValueError(f"out={out}: format={format_name} writes a {what} that ends in {suffix}")
    if not out.exists() or (out.is_dir() and files and not any(out.iterdir())):
        return
    if out.is_dir() != bool(files):
        raise ValueError(f"out={out} is a {'file' if files else 'folder'}; pass another path")
    if not overwrite:
        raise ValueError(f"out={out} exists; pass overwrite=true to replace it, or another path")
    if out.is_dir() and (foreign := sorted({path.name for path in out.iterdir()} - set(files))):
        raise ValueError(
            f"out={out} also holds {foreign[0]}, no part of an export; it is not replaced: pass another path"
        )
