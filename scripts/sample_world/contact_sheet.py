"""Overview of the sample data for the README."""

from pathlib import Path

import cv2
import numpy as np

from depthany.display.pictures import colour

from .classes import CLASSES, read_mask
from .depth_png import decode_depth_m

TILE_WIDTH, TILE_HEIGHT, GAP = 168, 126, 4
LEGEND_HEIGHT = 26


def colour_disparity(depth_mm: np.ndarray) -> np.ndarray:
    """[h w] stored depth to BGR [h w 3] in spectral_r, as all pictures: near is red, far and sky are blue."""
    disparity = 1 / np.maximum(decode_depth_m(depth_mm), 1e-3)
    low, high = np.percentile(disparity, (2, 98))
    return colour(disparity, low, high)[..., ::-1]


def tile(bgr: np.ndarray) -> np.ndarray:
    """Fits a picture of any shape into one cell, cut at the middle."""
    scale = max(TILE_WIDTH / bgr.shape[1], TILE_HEIGHT / bgr.shape[0])
    size = (max(TILE_WIDTH, round(bgr.shape[1] * scale)), max(TILE_HEIGHT, round(bgr.shape[0] * scale)))
    resized = cv2.resize(bgr, size, interpolation=cv2.INTER_AREA)
    top, left = (resized.shape[0] - TILE_HEIGHT) // 2, (resized.shape[1] - TILE_WIDTH) // 2
    cut = resized[top : top + TILE_HEIGHT, left : left + TILE_WIDTH]
    return cv2.copyMakeBorder(cut, 0, GAP, 0, GAP, cv2.BORDER_CONSTANT, value=(255, 255, 255))


def picture_row(folder: Path, kind: str, start: int, count: int) -> np.ndarray:
    paths = sorted((folder / "images" / kind).glob("*.jpg"))[start : start + count]
    return np.hstack([tile(cv2.imread(str(path))) for path in paths])


def depth_row(folder: Path, kind: str, start: int, count: int) -> np.ndarray:
    paths = sorted((folder / "depth" / kind).glob("*.png"))[start : start + count]
    return np.hstack([tile(colour_disparity(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))) for path in paths])


def mask_row(folder: Path, kind: str, start: int, count: int) -> np.ndarray:
    paths = sorted((folder / "masks" / kind).glob("*.png"))[start : start + count]
    return np.hstack([tile(CLASSES.rgb[read_mask(path)][..., ::-1]) for path in paths])


def legend(columns: int) -> np.ndarray:
    """Names of the classes beside their colours, as many in a row as there are pictures."""
    rows = -(-len(CLASSES.names) // columns)
    sheet = np.full((rows * LEGEND_HEIGHT + GAP, columns * (TILE_WIDTH + GAP), 3), 255, np.uint8)
    for i, (name, rgb) in enumerate(zip(CLASSES.names, CLASSES.rgb)):
        x, y = i % columns * (TILE_WIDTH + GAP), i // columns * LEGEND_HEIGHT + GAP
        cv2.rectangle(sheet, (x + 2, y), (x + 28, y + 18), rgb[::-1].tolist(), cv2.FILLED)
        cv2.rectangle(sheet, (x + 2, y), (x + 28, y + 18), (0, 0, 0), 1)
        cv2.putText(sheet, name, (x + 36, y + 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return sheet


def write_contact_sheet(root: Path, out: Path, columns: int = 7) -> None:
    """Labeled rooms and streets with their disparity and classes, then the unlabeled domain."""
    labeled, unlabeled = root / "labeled/train", root / "unlabeled/train"
    rows = []
    for kind in ("rooms", "streets"):
        rows += [row(labeled, kind, 0, columns) for row in (picture_row, depth_row, mask_row)]
    rows.append(legend(columns))
    for start in (0, columns):
        rows += [picture_row(unlabeled, kind, start, columns) for kind in ("rooms", "streets")]
    out.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(out), np.vstack(rows), [cv2.IMWRITE_JPEG_QUALITY, 85])
