"""Scores of an exported model beside those of the model itself: under a protocol, or on plain images.

A loss is in points, hundredths of the score: 1 is mIoU .71 to .70, or AbsRel .060 to .070.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depthany.evaluation.protocol_files import Chosen
from depthany.evaluation.results import summary
from depthany.evaluation.run import score_set
from depthany.inference.model_input import ModelInput, StretchedSize
from depthany.inference.predictor import Predictor
from depthany.metrics.table import METRICS
from depthany.models.files.exported_model import ExportedModel
from depthany.models.model import DenseModel
from depthany.system.plurals import counted

Compute = Callable[[Tensor], NDArray]  # the map of a normalised image [1 3 h w]


@dataclass(frozen=True)
class Score:
    """A score of the exported model and that of the model in float32.

    Attributes:
        name: name of the score, with what it was found on.
        exported, original: the scores.
        lost: points by which the exported one is worse; below 0 it is better.
    """

    name: str
    exported: float
    original: float
    lost: float


@dataclass(frozen=True)
class OneSizePredictor(Predictor):
    """A predictor that keeps its `fixed_size` whatever a protocol says, since its graph takes no other."""

    def for_protocol(self, name: str, wanted: ModelInput) -> "OneSizePredictor":
        """Returns the predictor with the views of a protocol, at its own size."""
        given = super().for_protocol(name, wanted)
        return replace(given, fixed_size=self.fixed_size, window=None, stride=None)  # type: ignore[return-value]


def predictor_of(model: Any, size: tuple[int, int] | None, label: str) -> Predictor:
    """Returns a predictor of a model, or of an `ExportedModel`, that prepares images as the metadata of the
    exported file say (`models.files.onnx.description`).

    Args:
        size: (height, width) of the only input size; None: any.
    """
    if size is None:
        return Predictor(model, model.input_size, label=label)
    return OneSizePredictor(model, model.input_size, label=label, fixed_size=StretchedSize(size))


def score_under(
    model: DenseModel, compute: Compute, one: Chosen, size: tuple[int, int] | None, limit: int | None
) -> Score:
    """Scores both models under a protocol, by its first metric.

    With a size, images are stretched to it whole, whatever size or windows the protocol asks for, since the
    file takes no other input; the name of the score says so.

    Args:
        limit: number of images to score, evenly spaced; None scores all.

    Raises:
        ValueError: the protocol does not fit the model, or nothing was scored.
    """
    dataset, name = one.open(), one.protocol.metrics[0]
    asked = len(dataset) if limit is None else min(limit, len(dataset))
    indices, found = [k * len(dataset) // asked for k in range(asked)], list[float]()
    for each, label in ((ExportedModel(model, compute), "the exported model"), (model, "the model")):
        scored = score_set(
            predictor_of(each, size, label), dataset, one.protocol, indices, 1, convert_images=True
        )
        if not scored.rows:
            raise ValueError(f"protocol {one.protocol.name}: no image has a score")
        found.append(summary(scored.rows, one.protocol)[name])
    exported, original = found
    worse = original - exported if METRICS[name].better == "higher" else exported - original
    where = "" if size is None else f" (images stretched to {size[0]}x{size[1]}, whole)"
    return Score(f"{METRICS[name].heading} of {one.protocol.name}{where}", exported, original, 100 * worse)


def score_on_images(model: DenseModel, compute: Compute, inputs: Iterable[Tensor]) -> Score:
    """Compares the maps of both models.

    Args:
        inputs: normalised images [1 3 h w] float32.

    Returns:
        For classes the share of pixels of equal class, 1 for the model itself. For depth the mean
        difference as a share of the map's range (disparity) or of the depth (metres), 0 for the model.
    """
    values = list[float]()
    for image in inputs:
        with torch.inference_mode():
            expected = model(image).map.numpy()
        values.append(_difference(model, compute(image), expected))
    lost = float(np.mean(values)) if values else float("nan")
    where = f"on {counted(len(values), 'image')}"
    if model.quantity.kind == "classes":
        return Score(f"pixels of the same class {where}", 1 - lost, 1.0, 100 * lost)
    unit = "the depth" if model.quantity.is_metric else "the map's range"
    return Score(f"mean difference as a share of {unit} {where}", lost, 0.0, 100 * lost)


def _difference(model: DenseModel, found: NDArray, expected: NDArray) -> float:
    """Returns the loss of one map: share of other classes, or mean difference as a share."""
    if model.quantity.kind == "classes":
        return float((found.argmax(1) != expected.argmax(1)).mean())
    difference = np.abs(found.astype(np.float64) - expected)
    if model.quantity.is_metric:
        return float((difference / expected).mean())
    return float(difference.mean() / max(float(expected.max() - expected.min()), 1e-12))


def require_small_loss(scores: Sequence[Score], max_loss: float) -> None:
    """Raises a ValueError if a score is worse than the model's by more than `max_loss` points, or NaN."""
    for score in scores:
        if not score.lost <= max_loss:
            raise ValueError(
                f"{score.name}: {score.exported:.4f} instead of {score.original:.4f}, {score.lost:.2f} "
                f"points lost, more than max_loss={max_loss:g}; it was not kept: use another precision, "
                "more images for calibration, or raise max_loss"
            )
