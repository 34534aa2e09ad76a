"""Depth maps stored as pictures; a fast decoder of 16-bit gray PNG, the usual file of a depth map."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from depthany.data.images import MAX_PIXELS

try:
    from kornia_rs.io import decode_image_png_u16
except ImportError:  # of the extra `fast`; without it Pillow reads the same numbers in twice the time
    decode_image_png_u16 = None

# PNG 1.2, sections 3.1, 3.2 and 4.1.1: signature, then IHDR: length, name, width, height, bit depth, colour
# type, compression, filter, interlace, checksum of name and content.
_START = struct.Struct(">8sI4sIIBBBBBI")
_GRAY_16 = (b"\x89PNG\r\n\x1a\n", 13, b"IHDR", 16, 0, 0, 0, 0)


def decode_gray_16(stored: bytes) -> NDArray[np.uint16] | None:
    """Returns [h w] uint16; None if the file is damaged or another kind of PNG, or kornia-rs is not
    installed.

    The caller then asks Pillow. The decoder (the Rust crate `png`) verifies the checksum of each chunk, and
    takes half as long as libpng.
    """
    if decode_image_png_u16 is None or len(stored) < _START.size:
        return None
    signature, length, kind, width, height, *layout, checksum = _START.unpack_from(stored)
    if (signature, length, kind, *layout) != _GRAY_16 or zlib.crc32(stored[12:29]) != checksum:
        return None
    if not 0 < width * height <= MAX_PIXELS:  # the decoder allocates before it reads
        return None
    try:
        pixels = decode_image_png_u16(stored, (height, width), "mono")
    except Exception:  # the decoder raises no narrower class
        return None
    return cast(NDArray[np.uint16], pixels[:, :, 0])


def read_picture(path: Path) -> NDArray[Any]:
    """Returns the numbers of a PNG or TIFF file, [h w] or [h w c], in their stored type.

    A palette becomes its colours: its numbers are places in a table, not depth.
    """
    data = path.read_bytes()
    if (gray := decode_gray_16(data)) is not None:
        return gray
    with Image.open(io.BytesIO(data)) as file:
        if file.mode in ("RGB", "RGBA") and _is_16_bit(file):  # Pillow would drop the lower eight bits
            colours = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)  # BGR or BGRA
            if colours is not None:
                return colours[:, :, [2, 1, 0, 3][: colours.shape[2]]]
        return np.asarray(file.convert("RGB") if file.mode in ("P", "PA") else file)


def _is_16_bit(file: Image.Image) -> bool:
    arguments = file.tile[0].args  # type: ignore[attr-defined]
    return ";16" in (arguments if isinstance(arguments, str) else str(arguments[0]))
