"""Score a prediction, or those of a sequence, under a protocol: what counts, the fit, the metrics."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from depthany.evaluation.protocol import Protocol
from depthany.metrics.align import Fit, depth_of, fit, floor_of, in_space
from depthany.metrics.boundary import boundary_f1
from depthany.metrics.crops import CROPS
from depthany.metrics.depth import pixel_sums, scores_of
from depthany.metrics.ordinal import Point, right_pairs

_ROUNDING = 1e-6  # a truth that was stored as disparity in float32 comes back off by this share at most


@dataclass(frozen=True)
class Pixels:
    """What of an image counts, in the space of the fit.

    x, y: [n] float32 prediction and truth. depth_m: [n] float32 true depth in m.
    whole: prediction in the space of the fit and true depth in m, [h w] each, where the boundary is scored:
        if the protocol asks for it and the truth has no hole.
    """

    index: int
    name: str
    x: NDArray[np.float32]
    y: NDArray[np.float32]
    depth_m: NDArray[np.float32]
    whole: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None


@dataclass(frozen=True)
class Row:
    """What one image scored.

    Attributes:
        index, name: of the image in its set.
        scores: by name. sums: what they are made of, to be pooled (see `pooled`).
        fitted: scale and shift, None where nothing is fitted. pixels: how many counted.
        scene: kind of scene (ordinal). extra: scores that no sums pool: boundary_f1.
    """

    index: int
    name: str
    scores: dict[str, float]
    sums: NDArray[np.float64]
    fitted: Fit | None = None
    pixels: int = 0
    scene: str = ""
    extra: dict[str, float] = field(default_factory=dict)


def counted_pixels(
    disparity: NDArray[np.float32], mask: NDArray[np.bool_], protocol: Protocol
) -> NDArray[np.bool_]:
    """[h w] bool, True where the truth is known, within the range and within the crop.

    Args:
        disparity: [h w] true disparity in 1/m, 0 = infinitely far. mask: [h w] where it is known.
    """
    counted = np.zeros_like(mask)
    box = CROPS[protocol.crop](*mask.shape)
    disparity, inside = disparity[box], mask[box]
    if protocol.min_depth is not None:
        inside = inside & (disparity <= (1 + _ROUNDING) / protocol.min_depth)
    if protocol.truth_beyond == "invalid":
        least = 0.0 if protocol.max_depth is None else (1 - _ROUNDING) / protocol.max_depth
        inside = inside & (disparity >= least if least else disparity > 0)
    counted[box] = inside
    return counted


def select(
    prediction: NDArray[np.float32],
    quantity: str,
    disparity: NDArray[np.float32],
    mask: NDArray[np.bool_],
    protocol: Protocol,
    index: int = 0,
    name: str = "",
) -> Pixels:
    """The pixels of an image that count.

    Args:
        prediction: [h w] at the size of the truth. quantity: disparity or depth, what it is.
        disparity, mask: [h w] the truth, as in a `DepthSample`.
    """
    space = protocol.fitted_in(quantity)
    counted = counted_pixels(disparity, mask, protocol)
    floor = floor_of(prediction)
    x, truth = in_space(prediction[counted], quantity, space, floor), disparity[counted]
    if protocol.truth_beyond == "clip":
        truth = np.maximum(truth, np.float32(1 / (protocol.max_depth or np.inf)))
    depth_m = np.float32(1) / truth
    whole = None
    if protocol.boundary_f1 and mask.all():  # it has no mask: a hole would be an edge
        whole = in_space(prediction, quantity, space, floor), _dense_depth_m(disparity, protocol)
    return Pixels(index, name, x, truth if space == "disparity" else depth_m, depth_m, whole)


def _dense_depth_m(disparity: NDArray[np.float32], protocol: Protocol) -> NDArray[np.float32]:
    """True depth [h w] in m, held to the range."""
    nearest, farthest = protocol.prediction_range_m
    return np.float32(1) / np.clip(disparity, np.float32(1 / farthest), np.float32(1 / nearest))


def score_together(members: Sequence[Pixels], quantity: str, protocol: Protocol, name: str) -> list[Row]:
    """Scores of images that share one fit: a single image, or a sequence.

    Images without a pixel that counts have no row; if none has one, there is no fit and no row.

    Args:
        quantity: disparity or depth, what was predicted. name: of the image or sequence.
    """
    members = sorted((each for each in members if len(each.x)), key=lambda each: each.index)
    if not members:
        return []
    x, y = (_joined([getattr(each, key) for each in members]) for key in ("x", "y"))
    fitted = fit(protocol.align, x, y, name)
    return [_row(each, fitted, quantity, protocol) for each in members]


def _joined(parts: list[NDArray]) -> NDArray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _row(pixels: Pixels, fitted: Fit, quantity: str, protocol: Protocol) -> Row:
    space, range_m = protocol.fitted_in(quantity), protocol.prediction_range_m
    sums = pixel_sums(depth_of(pixels.x, fitted, space, range_m), pixels.depth_m)
    scores = {key: float(value) for key, value in scores_of(sums).items()}
    extra = {}
    if pixels.whole is not None:
        predicted, true_m = pixels.whole
        extra["boundary_f1"] = boundary_f1(depth_of(predicted, fitted, space, range_m), true_m)
    told = None if protocol.align == "none" else fitted
    return Row(pixels.index, pixels.name, scores, sums, told, len(pixels.x), extra=extra)


def score_pairs(
    prediction: NDArray,
    quantity: str,
    pairs: Sequence[tuple[Point, Point]],
    scene: str,
    index: int = 0,
    name: str = "",
) -> Row:
    """Which share of point pairs (nearer, farther) is in the right order; see `right_pairs`."""
    right = right_pairs(prediction, pairs, larger_is_nearer=quantity == "disparity")
    sums = np.array([len(pairs), right], dtype=np.float64)
    return Row(index, name, {"accuracy": right / max(len(pairs), 1)}, sums, scene=scene)


def pooled(sums: NDArray[np.float64], task: str) -> dict[str, NDArray[np.float64]]:
    """Scores of [... k] sums over images: over all pixels, or over all pairs."""
    return {"accuracy": sums[..., 1] / sums[..., 0]} if task == "ordinal" else scores_of(sums)


def aligned_depth_m(
    prediction: NDArray[np.float32], quantity: str, fitted: Fit | None, protocol: Protocol
) -> NDArray[np.float64]:
    """The whole map in metres as it was scored, for pictures; `fitted` as in its `Row`."""
    space = protocol.fitted_in(quantity)
    x = in_space(prediction, quantity, space, floor_of(prediction))
    return depth_of(x, fitted or Fit(1.0, 0.0), space, protocol.prediction_range_m)
