"""Disparity as a picture."""

import cv2
import numpy as np
from numpy.typing import NDArray

COLOUR_MAP = cv2.COLORMAP_INFERNO  # bright is near; monotonous in brightness, so it reads in print as well
_GRAY = 128  # stands for no value


def colour(values: NDArray, low: float, high: float, mask: NDArray | None = None) -> NDArray[np.uint8]:
    """[h w 3] uint8 RGB of [h w] numbers: dark at `low`, bright at `high`, gray off the mask."""
    scaled = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    shades = cv2.applyColorMap((scaled * 255).astype(np.uint8), COLOUR_MAP)[:, :, ::-1].copy()
    if mask is not None:
        shades[~mask] = _GRAY
    return shades


def comparison_row(
    images: list[NDArray], target: NDArray, prediction: NDArray, mask: NDArray
) -> NDArray[np.uint8]:
    """One row: images, target, prediction, error; in one colour map and one scale.

    Target and prediction lose median and mean deviation first, as in the loss, so that they compare. Both
    are coloured from the target's smallest to its largest value; the error from 0 over the same span.

    Args:
        images: each [h w 3] uint8. target, prediction: [h w] disparity. mask: [h w] bool, where the target
            is known.
    """
    target, prediction = (_normalised(disparity, mask) for disparity in (target, prediction))
    low, high = (float(target[mask].min()), float(target[mask].max())) if mask.any() else (0.0, 1.0)
    tiles = [
        colour(target, low, high, mask),
        colour(prediction, low, high),
        colour(np.abs(prediction - target), 0.0, high - low, mask),
    ]
    return np.concatenate([*images, *tiles], axis=1)


def _normalised(disparity: NDArray, mask: NDArray) -> NDArray:
    if not mask.any():
        return disparity
    centred = disparity - np.median(disparity[mask])
    return centred / max(float(np.abs(centred[mask]).mean()), 1e-6)
