"""Depth maps as pictures: colour maps, and rows that compare a prediction with its target."""

import cv2
import numpy as np
from numpy.typing import NDArray

# Eleven steps of Spectral from blue to red, by Cynthia Brewer (colorbrewer2.org, Apache-2.0).
_SPECTRAL_R = "5e4fa2 3288bd 66c2a5 abdda4 e6f598 ffffbf fee08b fdae61 f46d43 d53e4f 9e0142"
_GRAY = 128  # of pixels without a value


def _opencv_map(number: int) -> NDArray[np.uint8]:
    """Returns a colour map of OpenCV, [256 3] uint8 RGB."""
    values = np.arange(256, dtype=np.uint8)[:, None]
    return np.ascontiguousarray(cv2.applyColorMap(values, number)[:, 0, ::-1])


def _between(colours: str) -> NDArray[np.uint8]:
    """Returns a colour map [256 3] uint8 RGB, linear between colours written as hexadecimal numbers."""
    anchors = np.array([list(bytes.fromhex(colour)) for colour in colours.split()])
    position = np.linspace(0, len(anchors) - 1, 256)
    channels = [np.interp(position, np.arange(len(anchors)), channel) for channel in anchors.T]
    return np.stack(channels, axis=1).round().astype(np.uint8)


COLOUR_MAPS = {  # [256 3] uint8 RGB, from far to near
    "inferno": _opencv_map(cv2.COLORMAP_INFERNO),  # brightness is monotonic, so it works in print as well
    "magma": _opencv_map(cv2.COLORMAP_MAGMA),
    "viridis": _opencv_map(cv2.COLORMAP_VIRIDIS),
    "turbo": _opencv_map(cv2.COLORMAP_TURBO),
    "spectral_r": _between(_SPECTRAL_R),  # most papers show depth in it: red is near
    "gray": np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1),
}


def colour(
    values: NDArray, low: float, high: float, mask: NDArray | None = None, colour_map: str = "spectral_r"
) -> NDArray[np.uint8]:
    """Returns a map in colours, [h w 3] uint8 RGB.

    Args:
        values: [h w] numbers.
        low, high: values of the first and the last colour; values beyond them get the same colours.
        mask: [h w] bool; pixels where it is False become gray. None colours all pixels.
        colour_map: a name in COLOUR_MAPS.

    Raises:
        ValueError: there is no such colour map.
    """
    if colour_map not in COLOUR_MAPS:
        raise ValueError(f"unknown colour map {colour_map!r}; choose from {', '.join(COLOUR_MAPS)}")
    shades: NDArray = cv2.applyColorMap(steps(values, low, high), COLOUR_MAPS[colour_map][:, None])
    if mask is not None:
        shades[~mask] = _GRAY
    return shades


def steps(values: NDArray, low: float, high: float) -> NDArray[np.uint8]:
    """Returns the index in a colour map of all `values` [h w], uint8: 0 at `low`, 255 at `high`."""
    return (np.clip((values - low) / max(high - low, 1e-12), 0, 1) * 255).astype(np.uint8)


def comparison_row(
    images: list[NDArray], target: NDArray, prediction: NDArray, mask: NDArray, in_metres: bool = False
) -> NDArray[np.uint8]:
    """Returns images, target, prediction and error side by side, [h w·(k + 3) 3] uint8 RGB.

    Disparities are first normalised by median and mean absolute deviation, as in the loss. Target and
    prediction are coloured from the target's smallest to its largest value (near is red), the error from 0
    over the same span (black to yellow). Metres are shown as they are, in the same colours from far to near;
    their error is the relative one, from 0 to 50 %.

    Args:
        images: k arrays [h w 3] uint8 RGB.
        target, prediction: [h w] disparity, or metres.
        mask: [h w] bool, where the target is known.
        in_metres: whether they are metres.
    """
    if in_metres:
        error = np.abs(prediction - target) / np.maximum(np.where(mask, target, 1), 1e-6)
        target, prediction, largest = -target, -prediction, 0.5  # the last colour is near
    else:
        target, prediction = (_normalised(disparity, mask) for disparity in (target, prediction))
        error = np.abs(prediction - target)
    low, high = (float(target[mask].min()), float(target[mask].max())) if mask.any() else (0.0, 1.0)
    tiles = [
        colour(target, low, high, mask),
        colour(prediction, low, high),
        colour(error, 0.0, largest if in_metres else high - low, mask, "inferno"),
    ]
    return np.concatenate([*images, *tiles], axis=1)


def at_size(values: NDArray, hw: tuple[int, ...]) -> NDArray:
    """Returns `values` [h w] of any type at another height and width, by the nearest pixel."""
    if values.shape == tuple(hw):
        return values
    plane = values.astype(np.uint8) if values.dtype == np.bool_ else values
    return cv2.resize(plane, (hw[1], hw[0]), interpolation=cv2.INTER_NEAREST_EXACT).astype(values.dtype)


def _normalised(disparity: NDArray, mask: NDArray) -> NDArray:
    if not mask.any():
        return disparity
    centred = disparity - np.median(disparity[mask])
    return centred / max(float(np.abs(centred[mask]).mean()), 1e-6)
