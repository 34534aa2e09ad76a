"""Tiny sets of pairs, and one with a defect of each kind."""

from pathlib import Path

import numpy as np
from PIL import Image


def write(root: Path, stem: str, stored: np.ndarray, image: np.ndarray | None = None) -> None:
    """A pair: random colours, and `stored` as PNG in millimetres, or as NPY where it is float."""
    for name in ("images", "depth"):
        (root / name).mkdir(parents=True, exist_ok=True)
    if image is None:
        image = np.random.default_rng(0).integers(0, 256, (*stored.shape, 3), dtype=np.uint8)
    Image.fromarray(image).save(root / "images" / f"{stem}.png")
    if stored.dtype == np.uint16:
        Image.fromarray(stored).save(root / "depth" / f"{stem}.png")
    else:
        np.save(root / "depth" / f"{stem}.npy", stored)


def whole(shape: tuple[int, int] = (6, 8), seed: int = 1) -> np.ndarray:
    """Depth of 1 to 9 m in millimetres."""
    return np.random.default_rng(seed).integers(1000, 9000, shape, dtype=np.uint16)


def plant(root: Path) -> dict[str, tuple[str, str, str]]:
    """A set with one defect of each kind; returns level, kind and part of the reason by file."""
    for i in range(3):
        write(root, f"whole_{i}", whole(seed=i))
    wrong = {
        "negative": np.where(whole() > 5000, whole(), -1.0).astype(np.float32),
        "nan": np.full((6, 8), np.nan, np.float32),
        "zero": np.zeros((6, 8), np.uint16),
        "all_negative": np.full((6, 8), -2.0, np.float32),
        "constant": np.full((6, 8), 4000, np.uint16),
        "sparse": np.pad(np.full((1, 2), [[2000, 3000]], np.uint16), ((0, 19), (0, 18))),
    }
    for name, stored in wrong.items():
        write(root, name, stored)
    write(root, "blank", whole(), np.full((6, 8, 3), 7, np.uint8))
    write(root, "size", whole(), whole((5, 8))[:, :, None].repeat(3, 2).astype(np.uint8))
    for name in ("empty", "cut", "text", "alone", "gray", "channels"):
        write(root, name, whole())
    (root / "images/empty.png").write_bytes(b"")
    cut = (root / "depth/cut.png").read_bytes()
    (root / "depth/cut.png").write_bytes(cut[: len(cut) // 2])
    (root / "images/text.png").write_text("no image")
    (root / "depth/alone.png").unlink()
    write(root, "orphan", whole())
    (root / "images/orphan.png").unlink()
    Image.new("L", (8, 6)).save(root / "images/gray.png")
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(root / "depth/channels.png")
    return {
        "depth/negative.npy": ("warning", "negative depth", "of the pixels are below 0"),
        "depth/nan.npy": ("error", "no valid pixel", "between 0.001 and 80 m"),
        "depth/zero.png": ("error", "no valid pixel", "remove the pair"),
        "depth/all_negative.npy": ("error", "no valid pixel", "at depth_scale=1000"),
        "depth/constant.png": ("warning", "constant depth", "the same at all 48 measured pixels"),
        "depth/sparse.png": ("warning", "few valid pixels", "0.50% of the pixels are valid"),
        "images/blank.png": ("warning", "blank image", "one colour, [7, 7, 7]"),
        "depth/size.png": ("error", "sizes differ", "depth is 8x6, its image 8x5"),
        "images/empty.png": ("error", "unreadable image", "the file is empty (0 bytes)"),
        "depth/cut.png": ("error", "unreadable depth", "cannot read the depth map"),
        "images/text.png": ("error", "unreadable image", "not an image, or damaged beyond its header"),
        "images/alone": ("error", "no partner", "no partner"),
        "depth/orphan": ("error", "no partner", "no partner"),
        "images/gray.png": ("error", "unreadable image", "expected an 8-bit RGB image, got gray"),
        "depth/channels.png": (
            "error",
            "unreadable depth",
            "expected one channel of depth, got uint8 of shape (6, 8, 3)",
        ),
    }
