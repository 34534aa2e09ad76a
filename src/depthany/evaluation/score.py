"""Scores of a prediction, or of those of a sequence, under a protocol: what counts, the fit, the metrics."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from depthany.evaluation.after_alignment import AlignedScore, score_aligned
from depthany.evaluation.protocol import Protocol
from depthany.metrics.align import Fit, fit, inversion_floor, is_degenerate, to_depth_m, to_space
from depthany.metrics.constant import is_constant
from depthany.metrics.crops import CROPS
from depthany.metrics.ordinal import Point
from depthany.metrics.table import METRICS, Sums, image_sums, pixel_sums, score_values

_ROUNDING = 1e-6  # relative error of a true depth that was stored as disparity in float32, at most


@dataclass(frozen=True)
class Pixels:
    """The pixels of an image that count, in the space of the fit.

    x, y: [n] float32 prediction and ground truth. depth_m: [n] float32 true depth in m.
    maps: prediction in the space of the fit and true depth in m, [h w] float32 each, and [h w] bool where the
        ground truth is known, all of the crop; None unless the protocol lists a metric over maps. Sky and
        ground truth beyond the range have the farthest depth of the range.
    replaced: how many values of x were NaN or infinite.
    """

    index: int
    name: str
    x: NDArray[np.float32]
    y: NDArray[np.float32]
    depth_m: NDArray[np.float32]
    maps: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]] | None = None
    replaced: int = 0


@dataclass(frozen=True)
class CountedPairs:
    """The confusion matrix [k k] of an image, without its zeros: most pairs of classes never occur.

    places: [m] places in the flat matrix. pixels: [m] their counts.
    """

    places: NDArray[np.int64]
    pixels: NDArray[np.int64]

    @classmethod
    def of(cls, confusion: NDArray[np.int64]) -> "CountedPairs":
        """Returns the pairs of classes that occur in a confusion matrix [k k]."""
        places = np.flatnonzero(confusion)
        return cls(places, confusion.ravel()[places])


@dataclass(frozen=True)
class Row:
    """The scores of one image.

    Attributes:
        index, name: index and name of the image in its set.
        scores: by metric; a metric that is not defined for this image is missing.
        sums: by metric, what the scores are made of; they add over images.
        fitted: scale and shift, None where nothing is fitted.
        is_constant: the prediction was scored as a constant: it is one where the ground truth counts, or, for
            align=median, its median is not above 0.
        is_degenerate: the ground truth says nothing, so there are no scores; see `align.is_degenerate`.
        pixels: how many counted.
        scene: kind of scene (ordinal).
        replaced: pixels that counted and whose prediction was NaN or infinite.
        aligned: where metres are not fitted, the scores after an alignment, by its method.
        confusion: confusion matrix, for classes.
    """

    index: int
    name: str
    scores: dict[str, float]
    sums: Sums
    fitted: Fit | None = None
    is_constant: bool = False
    is_degenerate: bool = False
    pixels: int = 0
    scene: str = ""
    replaced: int = 0
    aligned: dict[str, AlignedScore] = field(default_factory=dict)
    confusion: CountedPairs | None = None

    @property
    def is_negative(self) -> bool:
        """Whether the fit has a negative scale, which swaps near and far."""
        return self.fitted is not None and self.fitted.scale < 0


def counted_pixels(
    disparity: NDArray[np.float32], mask: NDArray[np.bool_], protocol: Protocol
) -> NDArray[np.bool_]:
    """Returns [h w] bool, True where the ground truth is known, within the range and within the crop.

    Args:
        disparity: [h w] true disparity in 1/m, 0 = infinitely far. mask: [h w] where it is known.
    """
    counted = np.zeros_like(mask)
    box = CROPS[protocol.crop](*mask.shape)
    disparity, inside = disparity[box], mask[box]
    slack = _ROUNDING if protocol.bounds == "inclusive" else -_ROUNDING
    if protocol.min_depth is not None:
        inside = inside & (disparity <= (1 + slack) / protocol.min_depth)
    if protocol.truth_beyond == "invalid":
        least = 0.0 if protocol.max_depth is None else (1 - slack) / protocol.max_depth
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
    """Returns the pixels of an image that count.

    Args:
        prediction: [h w] at the size of the ground truth. quantity: what it is, disparity or depth.
        disparity, mask: [h w] the ground truth, as in `Labels`.
        index, name: index and name of the image in its set.
    """
    space = protocol.fitted_in(quantity)
    counted = counted_pixels(disparity, mask, protocol)
    prediction, strange = without_nan(prediction, protocol)
    floor = inversion_floor(prediction)
    x, truth = to_space(prediction[counted], quantity, space, floor), disparity[counted]  # [n] each
    if protocol.truth_beyond == "clip":
        truth = np.maximum(truth, np.float32(1 / (protocol.max_depth or np.inf)))
    depth_m = np.float32(1) / truth  # [n]
    maps = None
    if any(METRICS[metric].over == "maps" for metric in protocol.metrics):
        box = CROPS[protocol.crop](*mask.shape)
        x_map = to_space(prediction[box], quantity, space, floor)
        maps = x_map, _clipped_depth_m(disparity[box], protocol), mask[box]
    replaced = 0 if strange is None else int(strange[counted].sum())
    return Pixels(index, name, x, truth if space == "disparity" else depth_m, depth_m, maps, replaced)


def without_nan(
    prediction: NDArray[np.float32], protocol: Protocol
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """Returns metres [h w] with NaN as the nearest and infinity as the farthest depth, and where they were.

    As in ZoeDepth's `compute_metrics`. The second is None for a protocol that refuses such a prediction.
    """
    if protocol.not_finite == "refuse":
        return prediction, None
    nearest, farthest = protocol.prediction_range_m
    strange = ~np.isfinite(prediction)
    return np.nan_to_num(prediction, nan=nearest, posinf=farthest, neginf=nearest), strange


def _clipped_depth_m(disparity: NDArray[np.float32], protocol: Protocol) -> NDArray[np.float32]:
    """Returns the true depth [h w] in m, clipped to the range of the prediction."""
    nearest, farthest = protocol.prediction_range_m
    return np.float32(1) / np.clip(disparity, np.float32(1 / farthest), np.float32(1 / nearest))


def score_together(members: Sequence[Pixels], quantity: str, protocol: Protocol) -> list[Row]:
    """Returns the scores of images that share one fit: a single image, or a sequence.

    Images without a pixel that counts have no row; those with degenerate ground truth have no scores.

    Args:
        quantity: what was predicted, disparity or depth.
    """
    members = sorted((pixels for pixels in members if len(pixels.x)), key=lambda pixels: pixels.index)
    if not members:
        return []
    x, y = (_joined([getattr(pixels, key) for pixels in members]) for key in ("x", "y"))  # [n] each
    if is_degenerate(protocol.align, y):
        return [Row(m.index, m.name, {}, {}, is_degenerate=True, pixels=len(m.x)) for m in members]
    fitted = fit(protocol.align, x, y)
    return [_row(pixels, fitted, quantity, protocol) for pixels in members]


def _joined(parts: list[NDArray]) -> NDArray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _row(pixels: Pixels, fitted: Fit, quantity: str, protocol: Protocol) -> Row:
    space, range_m = protocol.fitted_in(quantity), protocol.prediction_range_m
    sums = pixel_sums(protocol.metrics, to_depth_m(pixels.x, fitted, space, range_m), pixels.depth_m)
    if pixels.maps is not None:
        prediction, depth_m, known = pixels.maps
        sums |= image_sums(
            protocol.metrics, "maps", to_depth_m(prediction, fitted, space, range_m), depth_m, known
        )
    aligned = {}
    if protocol.align == "none":
        aligned = score_aligned(pixels.x, pixels.depth_m, protocol.metrics, range_m)
    return Row(
        pixels.index,
        pixels.name,
        score_values(sums, protocol.metrics),
        sums,
        fitted=None if protocol.align == "none" else fitted,
        is_constant=not fitted.solvable or is_constant(pixels.x),
        pixels=len(pixels.x),
        replaced=pixels.replaced,
        aligned=aligned,
    )


def score_pairs(
    prediction: NDArray,
    quantity: str,
    pairs: Sequence[tuple[Point, Point]],
    protocol: Protocol,
    scene: str,
    index: int = 0,
    name: str = "",
) -> Row:
    """Returns the scores of an image over its point pairs.

    Args:
        prediction: [h w] at the size of the image. quantity: what it is, disparity or depth.
        pairs: at least one pair of points, the nearer one first.
        scene: kind of scene. index, name: of the image in its set.
    """
    nearness = prediction if quantity == "disparity" else -prediction
    sums = image_sums(protocol.metrics, "pairs", nearness, pairs)
    return Row(
        index,
        name,
        score_values(sums, protocol.metrics),
        sums,
        is_constant=is_constant(prediction),
        scene=scene,
    )


def aligned_depth_m(
    prediction: NDArray[np.float32], quantity: str, fitted: Fit | None, protocol: Protocol
) -> NDArray[np.float64]:
    """Returns the whole map [h w] in metres as it was scored, for pictures.

    Args:
        prediction: [h w] at the size of the ground truth. quantity: what it is, disparity or depth.
        fitted: the fit of its `Row`.
    """
    space = protocol.fitted_in(quantity)
    prediction, _ = without_nan(prediction, protocol)
    x = to_space(prediction, quantity, space, inversion_floor(prediction))
    return to_depth_m(x, fitted or Fit(1.0, 0.0), space, protocol.prediction_range_m)
