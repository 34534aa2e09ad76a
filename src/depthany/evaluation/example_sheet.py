"""A few images of a set as one picture: input, ground truth, prediction and error, with captions."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from depthany.evaluation.predictors import ScoredPredictor
from depthany.evaluation.protocol import Protocol
from depthany.evaluation.run import ScoredSet
from depthany.evaluation.score import Row
from depthany.evaluation.tiles import Tile, tiles_of

WIDTH, CAPTION, GAP, FONT = 260, 18, 6, 11  # pixels: of a tile, of its caption, between tiles, of letters


def examples_of(
    rows: Sequence[Row], count: int, predictor: ScoredPredictor, dataset: ScoredSet, protocol: Protocol
) -> NDArray[np.uint8]:
    """Returns a picture [h w 3] uint8 RGB with a row for each of `count` images, evenly spaced in the set.

    Args:
        rows: scores of the images, at least one.
    """
    places = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    strips = [
        strip(tiles_of(rows[i].index, {predictor.label: rows[i]}, [predictor], dataset, protocol))
        for i in places
    ]
    return stacked(strips)


def stacked(pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Returns pictures [h w 3] uint8 one below the other, on white."""
    widest = max(picture.shape[1] for picture in pictures)
    padding = [((0, 0), (0, widest - picture.shape[1]), (0, 0)) for picture in pictures]
    return np.concatenate([np.pad(*each, constant_values=255) for each in zip(pictures, padding)])


def strip(tiles: Sequence[Tile]) -> NDArray[np.uint8]:
    """Returns the tiles of an image side by side, each above its caption."""
    images = [Image.fromarray(tile.picture) for tile in tiles]
    scaled = [image.resize((WIDTH, round(WIDTH * image.height / image.width))) for image in images]
    height = max(image.height for image in scaled)
    sheet = Image.new("RGB", ((WIDTH + GAP) * len(tiles), height + CAPTION + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT)
    for k, (tile, image) in enumerate(zip(tiles, scaled)):
        left = k * (WIDTH + GAP)
        sheet.paste(image, (left, 0))
        draw.text((left + 2, height + 2), tile.caption, fill="black", font=font)
    return np.asarray(sheet)
