"""Classes as pictures: their colours, overlays on the photo, rows that compare, and confusion matrices."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from depthany.display.pictures import at_size, colour

Colours = Sequence[tuple[int, int, int]]
_UNKNOWN = (224, 224, 224)  # RGB of pixels without a class
_RIGHT, _WRONG = (235, 235, 235), (200, 30, 30)
OVERLAY = 0.55  # share of the colour in an overlay
_CELL, _MARGIN, _SCALE = 26, 150, 0.42  # pixels of a cell and of the names; size of letters
MOST_NAMED = 40  # classes; larger matrices have no names


def palette(colours: Colours, count: int) -> NDArray[np.uint8]:
    """Returns [256 3] uint8 RGB: the colours of the classes; hues spread over the circle without any."""
    table = np.full((256, 3), _UNKNOWN, np.uint8)
    if colours:
        table[: len(colours)] = colours
    else:
        hues = (np.arange(count) * 180 * 0.618034) % 180
        hsv = np.stack([hues, np.full(count, 200), 150 + 100 * (np.arange(count) % 2)], axis=1)
        table[:count] = cv2.cvtColor(hsv[None].astype(np.uint8), cv2.COLOR_HSV2RGB)[0]
    return table


def class_picture(
    numbers: NDArray, table: NDArray[np.uint8], known: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8]:
    """Returns class numbers [h w] in their colours, [h w 3] uint8 RGB.

    Args:
        numbers: [h w] uint8. table: see `palette`. known: [h w] bool; other pixels become light gray.
    """
    picture = table[numbers]
    if known is not None:
        picture[~known] = _UNKNOWN
    return picture


def overlay(
    image: NDArray[np.uint8], picture: NDArray[np.uint8], share: float = OVERLAY
) -> NDArray[np.uint8]:
    """Returns image [h w 3] uint8 RGB under `picture` [h w 3], the colours of its classes."""
    return cv2.addWeighted(image, 1 - share, picture, share, 0).astype(np.uint8)


def class_row(
    images: Sequence[NDArray[np.uint8]],
    target: NDArray,
    predicted: NDArray,
    known: NDArray[np.bool_],
    table: NDArray[np.uint8],
) -> NDArray[np.uint8]:
    """Returns images, true classes, predicted ones and errors side by side, [h w*(n + 3) 3] uint8 RGB.

    Args:
        images: [h w 3] uint8 RGB.
        target, predicted: [p q] class numbers; resized to the images. known: [p q] bool.
        table: see `palette`.
    """
    size = images[0].shape[:2]
    target, predicted = (at_size(each.astype(np.uint8), size) for each in (target, predicted))
    known = at_size(known, size)
    shown = [class_picture(target, table, known), class_picture(predicted, table)]
    return np.concatenate([*images, *shown, errors_picture(target, predicted, known)], axis=1)


def errors_picture(target: NDArray, predicted: NDArray, known: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Returns [h w 3] uint8 RGB: red where the target [h w] is known and is not what is predicted [h w]."""
    picture = np.full((*target.shape, 3), _RIGHT, np.uint8)
    picture[(target != predicted) & known] = _WRONG
    return picture


def confusion_picture(confusion: NDArray[np.int64], names: Sequence[str]) -> NDArray[np.uint8]:
    """Returns a confusion matrix [k k] as [h w 3] uint8 RGB: true classes down, predicted ones across.

    A cell has the colour of its share of the true class's pixels; a class without pixels is gray.
    """
    k = len(names)
    of_row = confusion.sum(1, keepdims=True)
    shares = confusion / np.maximum(of_row, 1)
    cells = colour(shares, 0.0, 1.0, np.broadcast_to(of_row > 0, shares.shape), "viridis")
    side = _CELL if k <= MOST_NAMED else max(3, 1040 // k)
    cells = cv2.resize(cells, (k * side, k * side), interpolation=cv2.INTER_NEAREST).astype(np.uint8)
    if k > MOST_NAMED:
        return cells
    for i, j in np.argwhere(shares >= 0.005):
        shade = (0, 0, 0) if shares[i, j] > 0.6 else (255, 255, 255)
        text = f"{100 * shares[i, j]:.0f}"
        cv2.putText(cells, text, (j * side + 3, i * side + 17), 0, 0.36, shade, 1, cv2.LINE_AA)
    canvas = np.full((_MARGIN + k * side, _MARGIN + k * side, 3), 255, np.uint8)
    canvas[_MARGIN:, _MARGIN:] = cells
    across = np.full((k * side, _MARGIN, 3), 255, np.uint8)  # the names of columns, turned afterwards
    for i, name in enumerate(names):
        cv2.putText(canvas, name[:20], (4, _MARGIN + i * side + 17), 0, _SCALE, (0, 0, 0), 1, cv2.LINE_AA)
        cv2.putText(across, name[:20], (4, (i + 1) * side - 9), 0, _SCALE, (0, 0, 0), 1, cv2.LINE_AA)
    canvas[:_MARGIN, _MARGIN:] = np.rot90(across)
    return canvas
