"""Depth maps that are plain rows of float32: `.pfm`, `.dpt`, and raw files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from depthany.data.images import not_an_image
from depthany.system.packages import reason

_DPT_TAG = 202021.25  # "PIEH" as float32, with which every .dpt of Sintel begins (sintel_io.py of its SDK)


def read_pfm(path: Path) -> NDArray[np.float32]:
    """Reads a gray portable float map, whose rows are stored from the bottom up.

    Header: `Pf`, width and height, scale; a negative scale means little endian. The size of the scale has no
    agreed meaning and is ignored, as in MVSNet's reader of BlendedMVS. We do not use OpenCV 5: it divides by
    the scale, and returns no image and no reason for a damaged file. Format: netpbm.sourceforge.net.

    Returns:
        [h w] float32, the first row on top.

    Raises:
        ValueError: the file is damaged, truncated, or has colours.
    """
    with name_in_errors(path):
        stored = path.read_bytes()
        words, start = _header_words(stored, 4)
        if words[0] == b"PF":
            raise ValueError("expected one channel (Pf), got a PFM of three (PF)")
        if words[0] != b"Pf":
            raise ValueError(f"expected a PFM, which begins with Pf, got {stored[:2]!r}")
        width, height, scale = int(words[1]), int(words[2]), float(words[3])
        if not np.isfinite(scale) or scale == 0:
            raise ValueError(f"expected a scale above or below 0, got {scale}")
        rows = _floats(stored, start, height, width, "<f4" if scale < 0 else ">f4")
    return np.ascontiguousarray(rows[::-1], np.float32)


def read_dpt(path: Path) -> NDArray[np.float32]:
    """Reads a depth map of Sintel: float32 tag 202021.25, int32 width, int32 height, float32 rows, all little
    endian (sintel_io.py of the data set).

    Returns:
        [h w] float32 in metres.

    Raises:
        ValueError: the tag differs, or the file is too short or too long.
    """
    with name_in_errors(path):
        stored = path.read_bytes()
        if len(stored) < 12:
            raise ValueError(f"expected a header of 12 bytes, got {len(stored)} bytes")
        tag = float(np.frombuffer(stored, "<f4", 1)[0])
        if tag != _DPT_TAG:
            raise ValueError(f"expected the tag {_DPT_TAG}, got {tag:g}: not a depth map of Sintel")
        width, height = (int(size) for size in np.frombuffer(stored, "<i4", 2, offset=4))
        return _floats(stored, 12, height, width, "<f4").astype(np.float32)


def read_raw_float(path: Path, height: int, width: int) -> NDArray[np.float32]:
    """Reads a file that holds only little-endian float32 rows, such as the depth of ETH3D.

    Returns:
        [height width] float32.

    Raises:
        ValueError: the file cannot be read, or its size does not fit the shape.
    """
    with name_in_errors(path):
        return _floats(path.read_bytes(), 0, height, width, "<f4").astype(np.float32)


@contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
    """Turns every error inside into a ValueError of one line that names the file."""
    try:
        yield
    except UnidentifiedImageError:
        raise ValueError(f"{path}: {not_an_image(path.stat().st_size)}") from None
    except Exception as error:  # a damaged file can raise almost anything in these libraries
        if str(error).startswith(f"{path}: "):  # names it already
            raise
        raise ValueError(f"{path}: cannot read the depth map: {reason(error)}") from None


def _floats(stored: bytes, start: int, height: int, width: int, dtype: str) -> NDArray[Any]:
    """Returns [height width] numbers from byte `start` on. Raises ValueError if the file does not end
    there.
    """
    if height < 1 or width < 1:
        raise ValueError(f"expected a size of 1x1 or more, got {width}x{height}")
    wanted, there = 4 * height * width, len(stored) - start
    if wanted != there:
        raise ValueError(f"expected {wanted} bytes for {width}x{height} float32 numbers, got {there}")
    return np.frombuffer(stored, dtype, height * width, start).reshape(height, width)


def _header_words(stored: bytes, count: int) -> tuple[list[bytes], int]:
    """Returns the first words of a netpbm header, and where the data begins: one white space after them."""
    words, at = list[bytes](), 0
    while len(words) < count:
        while stored[at : at + 1].isspace():
            at += 1
        end = at
        while end < len(stored) and end - at < 32 and not stored[end : end + 1].isspace():
            end += 1
        if end == at or end == len(stored):
            raise ValueError("the header of the PFM is incomplete")
        words, at = [*words, stored[at:end]], end
    return words, at + 1
