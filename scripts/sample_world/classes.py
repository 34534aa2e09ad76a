"""The classes of the masks, as data/sample/classes.yaml names them, and the mask file.

A mask is an 8-bit palette PNG: the index of a pixel is the number of its class, the palette has the colours.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

CLASSES_FILE = Path(__file__).resolve().parents[2] / "data/sample/classes.yaml"


@dataclass(frozen=True)
class Classes:
    """The number of a class is its position in `names`; `rgb` [k 3] uint8 has the colours."""

    names: tuple[str, ...]
    rgb: np.ndarray


def read_classes(path: Path) -> Classes:
    rows = yaml.safe_load(path.read_text())["classes"]
    return Classes(tuple(row["name"] for row in rows), np.array([row["rgb"] for row in rows], np.uint8))


CLASSES = read_classes(CLASSES_FILE)
NUMBERS = {name: i for i, name in enumerate(CLASSES.names)}


def number(name: str) -> int:
    return NUMBERS[name]


def write_mask(path: Path, classes: np.ndarray) -> None:
    """Writes class numbers [h w] uint8 as a palette PNG, whatever the name ends in."""
    height, width = classes.shape
    image = Image.frombytes("P", (width, height), classes.tobytes())
    # Pillow would store up to 16 colours in 4 bits, which some readers do not know.
    image.putpalette(np.pad(CLASSES.rgb, ((0, max(0, 17 - len(CLASSES.rgb))), (0, 0))).tobytes())
    image.save(path, "PNG", optimize=True)


def read_mask(path: Path) -> np.ndarray:
    """Class numbers [h w] uint8."""
    with Image.open(path) as image:
        assert image.mode == "P", path
        return np.array(image)
