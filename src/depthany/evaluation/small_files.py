"""Writes a small file of a model, and keeps it only if it scores nearly as well as the model in float32."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from depthany.data.images import read_image
from depthany.evaluation.export_scores import (
    Score,
    predictor_of,
    require_small_loss,
    score_on_images,
    score_under,
)
from depthany.evaluation.protocol_files import Chosen
from depthany.models.files.exports import FORMATS, ExportOptions, require_close
from depthany.models.files.onnx import check_sizes, smooth_image
from depthany.models.model import DenseModel
from depthany.system.files import staged

MEGABYTE = 1e6


@dataclass(frozen=True)
class Trial:
    """What decides whether a small file is kept.

    Attributes:
        max_loss: points that it may lose in any score; see `export_scores`.
        protocols: protocols under which it is scored.
        images: paths of images on which its maps are compared with the model's.
        limit: number of images to score per set, evenly spaced; None: all.
        calibration: paths of the training images that calibrate 8 bits.
    """

    max_loss: float
    protocols: Sequence[Chosen] = ()
    images: Sequence[Path] = ()
    limit: int | None = None
    calibration: Sequence[Path] = field(default_factory=tuple)


def write_small(model: DenseModel, format_name: str, out: Path, options: ExportOptions, trial: Trial) -> None:
    """Writes a file of `options.precision`, prints its size and scores beside those of float32, and keeps it.

    Raises:
        ValueError: it loses too much, or cannot be written; nothing is kept.
    """
    form, precision = FORMATS[format_name], options.precision
    assert form.compute is not None and precision is not None
    if trial.calibration:
        options = replace(options, calibration=_arrays(model, trial.calibration, options.size))
    with staged(out) as place:
        form.write(model, place, options)
        compute = form.compute(place, model, options)
        if precision == "fp32":
            program = "onnxruntime" if format_name == "onnx" else "PyTorch, with the file's weights"
            require_close(model, compute, program, options)
        scores = list(_scores(model, compute, options, trial))
        whole = place if precision == "fp32" else None
        for line in _table(
            precision, size_of(place), _size_in_float32(model, format_name, options, whole), scores
        ):
            print(line, flush=True)
        require_small_loss(scores, trial.max_loss)


def _scores(
    model: DenseModel, compute: Callable[[Tensor], NDArray], options: ExportOptions, trial: Trial
) -> Iterator[Score]:
    """Yields the scores of a file: those that were asked for, else on the images of the calibration, or on
    coloured clouds.
    """
    for one in trial.protocols:
        yield score_under(model, compute, one, options.size, trial.limit)
    if paths := trial.images or ((not trial.protocols and trial.calibration) or ()):
        yield score_on_images(model, compute, prepared(model, evenly(paths, trial.limit), options.size))
    elif not trial.protocols:
        clouds = (smooth_image(1, h, w) for _, h, w in check_sizes(model, options.size, 1))
        score = score_on_images(model, compute, clouds)
        name = score.name.replace(" image", " made-up image")
        yield replace(score, name=f"{name} (pass images= or protocols=)")


def _table(precision: str, size: int, size_in_float32: int, scores: Sequence[Score]) -> list[str]:
    """Returns one line for float32, and one for the small file."""
    original = "".join(f"; {score.name} {score.original:.4f}" for score in scores)
    lines = [f"float32: {size_in_float32 / MEGABYTE:.2f} MB{original}"]
    exported = "".join(
        f"; {score.name} {score.exported:.4f}, {score.lost:.2f} points lost" for score in scores
    )
    return [*lines, f"{precision}: {size / MEGABYTE:.2f} MB{exported}"]


def _size_in_float32(
    model: DenseModel, format_name: str, options: ExportOptions, written: Path | None
) -> int:
    """Returns the size in bytes of the same file in float32, which is written for that and deleted."""
    if written is not None:
        return size_of(written)
    form = FORMATS[format_name]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / f"float32{form.suffix}"
        form.write(model, place, replace(options, precision="fp32"))
        return size_of(place)


def size_of(path: Path) -> int:
    """Returns the bytes of a file with the weights beside it, or of all files in a folder."""
    paths = path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.name}*")
    return sum(each.stat().st_size for each in paths if each.is_file())


def prepared(model: DenseModel, paths: Sequence[Path], size: tuple[int, int] | None) -> Iterator[Tensor]:
    """Yields the input [1 3 h w] of each image.

    Args:
        size: (height, width) of the only input size; None: any.
    """
    predictor = predictor_of(model, size, "the model")
    for path in paths:
        (image,) = predictor.prepare(read_image(path, convert=True), str(path))
        yield image[None]


def evenly(paths: Sequence[Path], limit: int | None) -> list[Path]:
    """Returns at most `limit` of the paths, evenly spaced; None returns all."""
    count = len(paths) if limit is None else min(limit, len(paths))
    return [paths[k * len(paths) // count] for k in range(count)]


def _arrays(
    model: DenseModel, paths: Sequence[Path], size: tuple[int, int] | None
) -> Callable[[], Iterator[NDArray]]:
    """Returns a function that yields the inputs of images as arrays [1 3 h w] float32."""
    return lambda: (np.ascontiguousarray(image.numpy()) for image in prepared(model, paths, size))
