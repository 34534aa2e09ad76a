"""Words in pictures: a legend of a colour map below a picture, and captions above columns."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

NARROWEST, LOWEST = 160, 100  # pixels of a picture that has room for a legend
_SMALLEST, _LARGEST, _SHARE = 11, 40, 1 / 45  # pixels of letters, by the width of the picture
_INK, _PAPER = 20, 255  # gray values


def legend_steps(
    size: tuple[int, int], far: str, near: str, table: NDArray[np.uint8]
) -> NDArray[np.uint8] | None:
    """Returns a legend as steps of its colour map, [rows width] uint8: `far`, all colours, `near`.

    Letters and paper have the darkest and the brightest colour of the map, so that a picture with the map as
    its palette can hold them.

    Args:
        size: (height, width) of the picture in pixels; in a small one there is no room: None is returned.
        far, near: words at the first and at the last colour.
        table: colour map [256 3] uint8 RGB.
    """
    height, width = size
    if width < NARROWEST or height < LOWEST:
        return None
    letters = int(np.clip(width * _SHARE, _SMALLEST, _LARGEST))
    font = ImageFont.load_default(letters)
    left, right = (round(font.getlength(text)) for text in (far, near))
    gap = letters // 2
    rows = round(1.8 * letters)
    image = Image.new("L", (width, rows), _PAPER)
    draw = ImageDraw.Draw(image)
    for text, x in ((far, gap), (near, width - gap - right)):
        draw.text((x, rows / 2), text, fill=0, font=font, anchor="lm")
    brightness = table.astype(int).sum(1)
    shown = np.where(np.asarray(image) < 128, brightness.argmin(), brightness.argmax()).astype(np.uint8)
    start, end = 2 * gap + left, width - 2 * gap - right
    if end - start >= gap:
        edge = rows // 5
        shown[edge : rows - edge, start:end] = np.linspace(0, 255, end - start).round()
    return shown


def with_captions(picture: NDArray[np.uint8], columns: Sequence[str], legend: str) -> NDArray[np.uint8]:
    """Returns a picture [h w 3] uint8 RGB with a caption above each of its equal columns, and lines below.

    It is widened to the words where they are longer.
    """
    step = picture.shape[1] / len(columns)
    letters = int(np.clip(step / 8, _SMALLEST, _LARGEST / 2))
    font, line = ImageFont.load_default(letters), round(1.5 * letters)
    below = legend.splitlines()
    width = max(picture.shape[1], *(round(font.getlength(words)) + 6 for words in below))
    sheet = Image.new("RGB", (width, picture.shape[0] + line * (1 + len(below))), (_PAPER,) * 3)
    sheet.paste(Image.fromarray(picture), (0, line))
    draw = ImageDraw.Draw(sheet)
    for k, name in enumerate(columns):
        draw.text((k * step + 3, 1), _fitting(name, step - 4, font), fill=(_INK,) * 3, font=font)
    for k, words in enumerate(below, start=1):
        draw.text((3, line * k + picture.shape[0] + 1), words, fill=(_INK,) * 3, font=font)
    return np.asarray(sheet)


def _fitting(text: str, width: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Returns as much of a text as has room in a width in pixels."""
    while text and font.getlength(text) > width:
        text = text[:-1]
    return text
