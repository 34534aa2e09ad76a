"""Contact sheet of a data set: image, depth and mask side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from depthany.data.images import decode_image
from depthany.data.targets import Labels
from depthany.display.pictures import colour
from depthany.system.files import write_atomically

TILE_WIDTH, TILE_HEIGHT, GAP, LINE = 240, 180, 6, 18
TILES_A_ROW = 6  # two or three labeled images, or six unlabeled ones
_MEASURED, _SKY, _NONE = (255, 255, 255), (110, 160, 235), (0, 0, 0)
_PAGE = 225  # gray, so that a white mask can be seen
MASK_LEGEND = "mask: white measured, blue sky, black unknown"
LEGENDS = {  # of labels, by their unit
    "m": "depth: red is near, blue far",
    "disparity": "disparity: red is near, blue far",
    "class": "classes: a colour each",
}


def draw_sheet(
    dataset: Any, indices: Sequence[int], path: Path, title: str, convert_images: bool = False
) -> None:
    """Writes a JPEG with the images `indices` of a labeled or unlabeled data set, and their labels.

    Depth is coloured as disparity, between the 2nd and the 98th percentile of each map. Masks are shown
    if one of them has a pixel that was not measured.
    """
    labels = [dataset.labels(int(index)) if hasattr(dataset, "labels") else None for index in indices]
    with_mask = any(each is not None and not _all_measured(each) for each in labels)
    cells = [
        _cell(dataset, int(index), each, with_mask, convert_images) for index, each in zip(indices, labels)
    ]
    columns = TILES_A_ROW // (1 if not labels or labels[0] is None else 2 + with_mask)
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    width = TILES_A_ROW * (TILE_WIDTH + GAP) + GAP
    head = _text([title, *(_legend(each.unit, with_mask) for each in labels[:1] if each)], width)
    sheet = np.concatenate([head, *(_row(row, width) for row in rows)])
    write_atomically(path, lambda partial: Image.fromarray(sheet).save(partial, "JPEG", quality=90))


def _all_measured(labels: Labels) -> bool:
    return bool(labels.valid.all()) and (labels.sky is None or not labels.sky.any())


def _legend(unit: str, with_mask: bool) -> str:
    """Returns a description of the tiles of a labeled image, with the unit of its labels."""
    shown = LEGENDS[unit]
    return (
        f"image | {shown}, gray unknown | {MASK_LEGEND}"
        if with_mask
        else f"image | {shown}; no pixel is unknown"
    )


def _row(cells: list[NDArray[np.uint8]], width: int) -> NDArray[np.uint8]:
    joined = np.concatenate(cells, axis=1)
    return np.pad(joined, ((0, 0), (GAP, width - GAP - joined.shape[1]), (0, 0)), constant_values=_PAGE)


def _cell(
    dataset: Any, index: int, labels: Labels | None, with_mask: bool, convert_images: bool
) -> NDArray[np.uint8]:
    """Returns the tiles of one image, with a caption below."""
    stored = dataset.stored_image(index)
    name = str(dataset.name(index))
    upright = getattr(dataset, "upright", True)
    image = decode_image(stored, name, convert_images, upright) if isinstance(stored, bytes) else stored
    tiles = [_tile(image, cv2.INTER_AREA)]
    text = f"{image.shape[1]}x{image.shape[0]}"
    if labels is not None:
        pictures = _depth_and_mask(labels)[: 1 + with_mask]
        tiles += [_tile(picture, cv2.INTER_NEAREST) for picture in pictures]
        text += "  " + _range(labels)
    strip = np.concatenate(tiles, axis=1)
    limit = strip.shape[1] // 7 - len(text) - 2  # characters; the end of a path says more than its start
    name = name if len(name) <= limit else "…" + name[-max(limit - 1, 1) :]
    lines = [f"{name}  {text}"] if len(tiles) > 1 else [name, text]
    return np.concatenate([strip, _text(lines, strip.shape[1])])


def _range(labels: Labels) -> str:
    """Returns the smallest and the largest valid value, and the share of valid pixels."""
    share = f"{labels.mask.mean():.1%} valid"
    values = labels.values[labels.valid]
    if not values.size:
        return share
    span = f"{values.min():.3g} to {values.max():.3g}"
    return f"{span} m  {share}" if labels.unit == "m" else f"{labels.unit} {span}  {share}"


def _depth_and_mask(labels: Labels) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns two pictures [h w 3]: disparity (or classes) in colours, and what is known of each pixel."""
    values = labels.values if labels.unit == "class" else labels.disparity
    known = values[labels.mask]
    low, high = np.percentile(known, (2, 98)) if known.size else (0.0, 1.0)
    states = np.full((*labels.mask.shape, 3), _NONE, np.uint8)
    states[labels.valid] = _MEASURED
    if labels.sky is not None:
        states[labels.sky] = _SKY
    return colour(values, float(low), float(high), labels.mask, "spectral_r"), states


def _tile(picture: NDArray[np.uint8], interpolation: int) -> NDArray[np.uint8]:
    """Returns a picture of any shape, shrunk or enlarged, centred in a tile with a margin on its right."""
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
    """Returns lines of text as a picture [lines * LINE + GAP, width, 3]."""
    strip = Image.new("RGB", (width, len(lines) * LINE + GAP), (_PAGE, _PAGE, _PAGE))
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(size=13)
    for i, line in enumerate(lines):
        draw.text((2, i * LINE), line, (20, 20, 20), font)
    return np.asarray(strip)
