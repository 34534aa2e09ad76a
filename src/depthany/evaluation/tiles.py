"""Pictures of single images for the report: input, ground truth, predictions and their errors."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from depthany.data.targets import Labels
from depthany.display.class_pictures import class_picture, errors_picture, overlay, palette
from depthany.display.pictures import colour
from depthany.evaluation.edge_zooms import edge_windows, enlarged
from depthany.evaluation.predictors import ScoredPredictor, space_of
from depthany.evaluation.protocol import Protocol
from depthany.evaluation.run import EvaluationImage, ScoredSet, predict_at_truth, read_one
from depthany.evaluation.score import Row, aligned_depth_m, counted_pixels

WIDTH = 320  # pixels of a tile
WORST_ERROR = 0.5  # relative error that has the last colour of the error map
_NEAR, _FAR = (40, 220, 90), (235, 60, 60)  # RGB of points


@dataclass(frozen=True)
class Tile:
    """A picture of the report.

    Attributes:
        picture: [h w 3] uint8 RGB.
        caption: the words under it.
        column: column of the page, from 1; None: the next one.
    """

    picture: NDArray[np.uint8]
    caption: str
    column: int | None = None

    def data_uri(self, width: int = WIDTH) -> str:
        """Returns the picture as a JPEG in a data: address, `width` pixels wide at most."""
        shrink = min(1.0, width / self.picture.shape[1])
        size = max(1, round(self.picture.shape[1] * shrink)), max(1, round(self.picture.shape[0] * shrink))
        small = cv2.resize(self.picture, size, interpolation=cv2.INTER_AREA)
        done, stored = cv2.imencode(".jpg", small[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
        assert done
        return "data:image/jpeg;base64," + base64.b64encode(stored.tobytes()).decode()


def tiles_of(
    index: int,
    rows: dict[str, Row],
    predictors: Sequence[ScoredPredictor],
    dataset: ScoredSet,
    protocol: Protocol,
    zooms: int = 0,
) -> list[Tile]:
    """Returns input and ground truth, then prediction and error of each predictor that has a row for this
    image, then enlarged places with the strongest true edges, side by side.

    The image is predicted once more and aligned as in its row. Ground truth and predictions
    share a colour scale.

    Args:
        index: index of the image in the set.
        rows: row of the image for each predictor, by label.
        zooms: how many places are enlarged; none where ground truth is sparse.
    """
    shown, zoomed, maps_m = list[Tile](), list[Tile](), dict[str, NDArray[np.float64]]()
    for predictor in predictors:
        if predictor.label not in rows:
            continue
        set_up = predictor.for_protocol(protocol.name, protocol.model_input)
        image = read_one(set_up, dataset, protocol, index, convert_images=True)
        assert isinstance(image, EvaluationImage), "it was read when it was scored"
        (prediction,) = predict_at_truth(set_up, [image], protocol)
        if image.labels is not None and protocol.task == "classes":
            shown += _of_classes(image, image.labels, prediction, predictor, not shown)
        elif image.labels is None:
            shown += _of_pairs(image, prediction, predictor, not shown)
        else:
            depth_m = aligned_depth_m(prediction, space_of(predictor), rows[predictor.label].fitted, protocol)
            shown += _of_depth(image, depth_m, predictor.label, protocol, not shown)
            maps_m[predictor.label] = depth_m
            if maps_m.keys() == rows.keys():  # the last one
                zoomed = _zooms(image, maps_m, protocol, zooms)
    return shown + zoomed


def _zooms(
    image: EvaluationImage, maps_m: dict[str, NDArray[np.float64]], protocol: Protocol, count: int
) -> list[Tile]:
    """Returns `count` rows of input, ground truth and the maps [h w] of the predictors around true edges."""
    true_disparity, counted, (low, high) = _truth(image, protocol)
    if _is_sparse(counted):
        return []
    pictures = {"input": image.pixels, "truth": colour(true_disparity, low, high, counted, "spectral_r")}
    for label, depth_m in maps_m.items():
        pictures[label] = colour(1 / depth_m, low, high, colour_map="spectral_r")
    tiles = list[Tile]()
    for number, window in enumerate(edge_windows(1 / true_disparity, counted, count), start=1):
        for k, (name, picture) in enumerate(pictures.items()):
            part = enlarged(picture, window, counted.shape, WIDTH)
            tiles.append(Tile(part, f"edges {number}: {name}", column=None if k else 1))
    return tiles


def _truth(
    image: EvaluationImage, protocol: Protocol
) -> tuple[NDArray, NDArray[np.bool_], tuple[float, float]]:
    """Returns true disparity [h w] in 1/m, where it counts [h w], and the ends of its colour scale."""
    assert image.labels is not None
    nearest, farthest = protocol.prediction_range_m
    true_disparity = np.clip(image.labels.disparity, 1 / farthest, 1 / nearest)
    counted = counted_pixels(image.labels.disparity, image.labels.mask, protocol)
    low, high = np.percentile(true_disparity[counted], [2, 98])
    return true_disparity, counted, (float(low), float(high))


def _of_depth(
    image: EvaluationImage, depth_m: NDArray[np.float64], label: str, protocol: Protocol, first: bool
) -> list[Tile]:
    true_disparity, counted, (low, high) = _truth(image, protocol)
    error = np.abs(depth_m * true_disparity - 1)
    tiles = []
    if first:
        spread = f"{1 / high:.2f} to {1 / low:.2f} m"
        tiles.append(Tile(image.pixels, "input"))
        truth = colour(_thick(true_disparity, counted), low, high, _grown(counted), "spectral_r")
        tiles.append(Tile(truth, f"ground truth, red to blue: {spread}"))
    how = "in metres, not fitted" if protocol.align == "none" else "fitted"
    tiles.append(Tile(colour(1 / depth_m, low, high, colour_map="spectral_r"), f"{label}, {how}", column=3))
    wrong = colour(_thick(error, counted), 0, WORST_ERROR, _grown(counted), "inferno")
    tiles.append(Tile(wrong, f"{label}, error: black 0 to yellow {100 * WORST_ERROR:.0f} % and more"))
    return tiles


def _of_classes(
    image: EvaluationImage, labels: Labels, numbers: NDArray, predictor: ScoredPredictor, first: bool
) -> list[Tile]:
    quantity = predictor.quantity
    table = palette(quantity.class_colours, len(quantity.class_names))
    target, pixels = np.where(labels.valid, labels.values, 0).astype(np.uint8), image.pixels
    truth = class_picture(target, table, labels.valid)
    tiles = [Tile(pixels, "input"), Tile(overlay(pixels, truth), "truth")] if first else []
    predicted = overlay(pixels, class_picture(numbers, table))
    tiles.append(Tile(predicted, predictor.label, column=3))
    wrong = errors_picture(target, numbers, labels.valid)
    return [*tiles, Tile(wrong, f"{predictor.label}, red where it is wrong")]


def _is_sparse(counted: NDArray[np.bool_]) -> bool:
    return bool(counted.mean() < 0.3)


def _grown(counted: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Enlarges the points of a laser scanner in a mask [h w], to make them visible in a small picture."""
    if not _is_sparse(counted):
        return counted
    return cv2.dilate(counted.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)


def _thick(values: NDArray, counted: NDArray[np.bool_]) -> NDArray:
    """Enlarges the points of a laser scanner in a map [h w]."""
    if not _is_sparse(counted):
        return values
    return cv2.dilate(np.where(counted, values, 0).astype(np.float32), np.ones((5, 5), np.uint8))


def _of_pairs(
    image: EvaluationImage, prediction: NDArray[np.float32], predictor: ScoredPredictor, first: bool
) -> list[Tile]:
    nearness = prediction if predictor.quantity.larger_is_nearer else -prediction
    low, high = np.percentile(nearness, [2, 98])
    shades = colour(nearness, float(low), float(high), colour_map="spectral_r")
    tiles = [Tile(_with_points(image.pixels, image), "input; green: nearer, red: farther")] if first else []
    return [*tiles, Tile(_with_points(shades, image), f"{predictor.label}, red is near")]


def _with_points(picture: NDArray[np.uint8], image: EvaluationImage) -> NDArray[np.uint8]:
    """Draws the pairs of points into a picture [h w 3] uint8 RGB."""
    marked = np.ascontiguousarray(picture).copy()
    radius = max(3, picture.shape[1] // 60)
    for nearer, farther in image.pairs:
        cv2.line(marked, nearer[::-1], farther[::-1], (255, 255, 255), max(1, radius // 3), cv2.LINE_AA)
        for point, shade in ((nearer, _NEAR), (farther, _FAR)):
            cv2.circle(marked, point[::-1], radius, shade, -1, cv2.LINE_AA)
    return marked
