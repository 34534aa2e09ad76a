"""Enlarged places of an image around its strongest true edges, for the report."""

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 0.25  # side of a window, as share of the shorter side of the image
LEAST_PIXELS = 16  # least side of a window, in pixels
EDGE = 1.1  # ratio of depth between neighbours that makes an edge
Window = tuple[slice, slice]


def edge_windows(depth_m: NDArray, counted: NDArray[np.bool_], count: int) -> list[Window]:
    """Returns at most `count` squares around the most true edges, the best first; no two overlap.

    Args:
        depth_m: [h w] true depth in m, above 0 where counted.
        counted: [h w] True where it is known; a pair of neighbours needs both.
    """
    h, w = depth_m.shape
    side = min(h, w, max(LEAST_PIXELS, round(SIDE * min(h, w))))
    taps = side - 1 + side % 2  # an odd number, within the window
    weighed = cv2.GaussianBlur(  # edges in the middle of a window count most
        _edges(depth_m, counted).astype(np.float32), (taps, taps), side / 4, borderType=cv2.BORDER_CONSTANT
    )
    inside = weighed[taps // 2 :, taps // 2 :][: h - side + 1, : w - side + 1]  # by the window's first pixel
    windows = list[Window]()
    while len(windows) < count and inside.max(initial=0) > 0:
        y, x = (int(place) for place in np.unravel_index(inside.argmax(), inside.shape))
        windows.append((slice(y, y + side), slice(x, x + side)))
        inside[max(0, y - side + 1) : y + side, max(0, x - side + 1) : x + side] = 0
    return windows


def _edges(depth_m: NDArray, counted: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns [h w] True at the first pixel of each pair of neighbours that is an edge."""
    logarithm = np.log(np.where(counted, depth_m, 1))
    edges = np.zeros(depth_m.shape, bool)
    edges[:-1] = counted[:-1] & counted[1:] & (np.abs(np.diff(logarithm, axis=0)) > np.log(EDGE))
    edges[:, :-1] |= counted[:, :-1] & counted[:, 1:] & (np.abs(np.diff(logarithm, axis=1)) > np.log(EDGE))
    return edges


def enlarged(
    picture: NDArray[np.uint8], window: Window, shape: tuple[int, int], width: int
) -> NDArray[np.uint8]:
    """Returns the part of a picture inside a window, `width` pixels wide, with its pixels as squares.

    Args:
        picture: [H W 3] uint8 of the whole image, of any size.
        window: in pixels of a map of `shape` (height, width).
    """
    scale_y, scale_x = picture.shape[0] / shape[0], picture.shape[1] / shape[1]
    rows, columns = (
        slice(round(part.start * scale), max(round(part.start * scale) + 1, round(part.stop * scale)))
        for part, scale in zip(window, (scale_y, scale_x))
    )
    part = picture[rows, columns]
    height = max(1, round(width * part.shape[0] / part.shape[1]))
    return cv2.resize(part, (width, height), interpolation=cv2.INTER_NEAREST).astype(np.uint8)
