"""Contact sheet of a data set: image, depth and mask beside each other, to be looked at."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from depthany.data.images import decode_image
from depthany.display.pictures import colour
from depthany.system.files import write_atomically

TILE_WIDTH, TILE_HEIGHT, GAP, LINE = 240, 180, 6, 18
TILES_A_ROW = 6  # two labeled images, or six that are not
_MEASURED, _SKY, _NONE = (255, 255, 255), (110, 160, 235), (0, 0, 0)
_PAGE = 225  # gray, on which a white mask is seen
LEGEND = "image | depth: red is near, blue far, gray unknown | mask: white measured, blue sky, black unknown"


def draw_sheet(
    dataset: Any, indices: Sequence[int], path: Path, title: str, convert_images: bool = False
) -> None:
    """Write a JPEG with the images `indices` of a labeled or unlabeled set, and their depth.

    Depth is coloured as disparity, each map between its 2nd and 98th percentile.
    """
    cells = [_cell(dataset, int(index), convert_images) for index in indices]
    labeled = hasattr(dataset, "labels")
    columns = TILES_A_ROW // (3 if labeled else 1)
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    width = TILES_A_ROW * (TILE_WIDTH + GAP) + GAP
    head = _text([title, LEGEND] if labeled else [title], width)
    sheet = np.concatenate([head, *(_row(row, width) for row in rows)])
    write_atomically(path, lambda partial: Image.fromarray(sheet).save(partial, "JPEG", quality=90))


def _row(cells: list[NDArray[np.uint8]], width: int) -> NDArray[np.uint8]:
    joined = np.concatenate(cells, axis=1)
    return np.pad(joined, ((0, 0), (GAP, width - GAP - joined.shape[1]), (0, 0)), constant_values=_PAGE)


def _cell(dataset: Any, index: int, convert_images: bool) -> NDArray[np.uint8]:
    """The tiles of one image over a caption."""
    stored = dataset.stored_image(index)
    name = str(dataset.name(index))
    image = decode_image(stored, name, convert_images) if isinstance(stored, bytes) else stored
    tiles = [_tile(image, cv2.INTER_AREA)]
    told = f"{image.shape[1]}x{image.shape[0]}"
    if hasattr(dataset, "labels"):
        labels = dataset.labels(index)
        in_disparity = getattr(dataset, "in_disparity", False)
        tiles += [_tile(each, cv2.INTER_NEAREST) for each in _depth_and_mask(labels.disparity, labels.mask)]
        told += "  " + _range(labels.disparity, labels.mask, in_disparity)
    strip = np.concatenate(tiles, axis=1)
    limit = strip.shape[1] // 7 - len(told) - 2  # characters; the end of a path tells more than its start
    name = name if len(name) <= limit else "…" + name[-max(limit - 1, 1) :]
    lines = [f"{name}  {told}"] if len(tiles) > 1 else [name, told]
    return np.concatenate([strip, _text(lines, strip.shape[1])])


def _range(disparity: NDArray, mask: NDArray, in_disparity: bool) -> str:
    """Depth from near to far, and the share of valid pixels."""
    measured = disparity[mask & (disparity > 0)]
    share = f"{mask.mean():.1%} valid"
    if not measured.size:
        return share
    near, far = float(measured.max()), float(measured.min())
    span = f"disparity {far:.3g} to {near:.3g}" if in_disparity else f"{1 / near:.3g} to {1 / far:.3g} m"
    return f"{span}  {share}"


def _depth_and_mask(disparity: NDArray, mask: NDArray) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Two pictures [h w 3]: disparity in colours, and what is known of each pixel."""
    known = disparity[mask]
    low, high = np.percentile(known, (2, 98)) if known.size else (0.0, 1.0)
    states = np.full((*mask.shape, 3), _NONE, np.uint8)
    states[mask] = _MEASURED
    states[mask & (disparity == 0)] = _SKY
    return colour(disparity, float(low), float(high), mask, "spectral_r"), states


def _tile(picture: NDArray[np.uint8], interpolation: int) -> NDArray[np.uint8]:
    """A picture of any shape, whole, in the middle of a tile with a margin to its right."""
    height, width = picture.shape[:2]
    scale = min(TILE_WIDTH / width, TILE_HEIGHT / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if scale > 1:
        interpolation = cv2.INTER_NEAREST
    tile = np.full((TILE_HEIGHT, TILE_WIDTH + GAP, 3), _PAGE, np.uint8)
    top, left = (TILE_HEIGHT - size[1]) // 2, (TILE_WIDTH - size[0]) // 2
    tile[top : top + size[1], left : left + size[0]] = cv2.resize(picture, size, interpolation=interpolation)
    return tile


def _text(lines: list[str], width: int) -> NDArray[np.uint8]:
    """Dark lines on the page, [lines * LINE + GAP, width, 3]."""
    strip = Image.new("RGB", (width, len(lines) * LINE + GAP), (_PAGE, _PAGE, _PAGE))
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(size=13)
    for i, line in enumerate(lines):
        draw.text((2, i * LINE), line, (20, 20, 20), font)
    return np.asarray(strip)
