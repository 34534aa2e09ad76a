"""The depth file of the sample data: 16-bit PNG, planar z in millimetres."""

from pathlib import Path

import cv2
import numpy as np

UNKNOWN_MM = 0
SKY_MM = 65535
MAX_DEPTH_M = 65.0


def encode_depth_mm(depth_m: np.ndarray, sky: np.ndarray) -> np.ndarray:
    """Metres to the stored integers.

    z is rounded to 10 significant bits: at most 0.1 % off, and the PNG shrinks because fewer values occur.

    Args:
        depth_m: [h w] planar z in metres; not finite, <= 0 or > 65 m becomes unknown (0).
        sky: [h w] bool, True where the ray meets nothing.

    Returns:
        [h w] uint16 millimetres, 0 = unknown, 65535 = sky.
    """
    known = np.isfinite(depth_m) & (depth_m > 0) & (depth_m <= MAX_DEPTH_M) & ~sky
    mantissa, exponent = np.frexp(np.where(known, depth_m, 1.0) * 1000.0)
    step = np.maximum(np.ldexp(1.0, exponent - 10), 1.0)
    rounded = np.round(np.ldexp(mantissa, exponent) / step) * step
    depth_mm = np.where(known, rounded, UNKNOWN_MM)
    return np.where(sky, SKY_MM, depth_mm).astype(np.uint16)


def decode_depth_m(depth_mm: np.ndarray) -> np.ndarray:
    """[h w] uint16 to float32 metres: unknown is 0, sky is infinite."""
    depth_m = depth_mm.astype(np.float32) / 1000.0
    return np.where(depth_mm == SKY_MM, np.float32(np.inf), depth_m)


def write_depth(path: Path, depth_mm: np.ndarray) -> None:
    """Writes the stored integers [h w] as a PNG of the highest compression, whatever the name ends in."""
    path.write_bytes(cv2.imencode(".png", depth_mm, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1])
