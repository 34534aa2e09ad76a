"""16-bit gray PNGs take a faster way than Pillow's: the same numbers, and damage is found."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from depthany.data.depth_png import decode_gray_16

DRAW = np.random.default_rng(0)
MAPS = {
    "smooth": np.add.outer(np.arange(40) * 7, np.arange(50) * 300).astype(np.uint16),
    "noise": DRAW.integers(0, 65536, (33, 17), dtype=np.uint16),
    "steps": np.repeat(np.repeat(DRAW.integers(0, 65536, (4, 5), dtype=np.uint16), 9, 0), 7, 1),
    "one pixel": np.array([[65535]], np.uint16),
}


def written_by_pillow(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def written_by_opencv(values: np.ndarray) -> bytes:
    return cv2.imencode(".png", values)[1].tobytes()


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("write", [written_by_pillow, written_by_opencv])
def test_every_number_is_kept(name: str, write) -> None:
    decoded = decode_gray_16(write(MAPS[name]))
    assert decoded is not None
    assert decoded.dtype == np.uint16
    np.testing.assert_array_equal(decoded, MAPS[name])


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1"])
def test_other_pngs_are_left_to_pillow(mode: str) -> None:
    file = io.BytesIO()
    Image.new(mode, (5, 4)).save(file, "PNG")
    assert decode_gray_16(file.getvalue()) is None


def test_damaged_png_is_never_decoded() -> None:
    stored = written_by_pillow(MAPS["smooth"])
    for length in range(len(stored) - 12):  # the last 12 bytes say that this is the end
        assert decode_gray_16(stored[:length]) is None
    data = stored.index(b"IDAT")
    for place in range(data, len(stored) - 16, 3):
        damaged = bytearray(stored)
        damaged[place] ^= 1 << place % 8
        assert decode_gray_16(bytes(damaged)) is None


def test_header_of_a_huge_image_is_refused() -> None:
    stored = bytearray(written_by_pillow(MAPS["steps"]))
    stored[16:24] = struct.pack(">II", 2**31 - 1, 2**31 - 1)
    stored[29:33] = struct.pack(">I", zlib.crc32(stored[12:29]))
    assert decode_gray_16(bytes(stored)) is None
