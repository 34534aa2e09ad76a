"""Stores a disparity map in 16 bits a pixel, compressed to about a quarter of its float32 bytes.

A map d [h w] with smallest value `offset` and largest value `offset + 65535 * step` is stored as:

    code      = round((d - offset) / step)                     uint16; the only loss, at most half a step
    residual  = 128 + code - left - up + up_left  mod 2**16    0 for a neighbour beyond the edge
    chunk     = deflate(bytes of the residuals, low ones first, then high ones)

Between neighbouring pixels a predicted map is nearly a plane, so most residuals lie in -128..127. Adding 128
keeps these in the low byte, and the high bytes are nearly constant. The bytes are in the order of HDF5's
shuffle filter and the stream is that of its gzip filter, so any HDF5 reads the residuals without a plugin.
Deflate only looks for runs (Z_RLE): longer matches are rare here, and cost half of the time.

Chosen by `scripts/benchmark_labels.py`, which has the figures.
"""

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STEPS = 65535
BYTES_PER_PIXEL = 1.1  # of a chunk, about: .92 at 518, 1.08 at 126 (`scripts/benchmark_labels.py`)
_CENTRE = np.uint16(128)


@dataclass(frozen=True)
class CodedLabel:
    """A compressed map [height width]: `offset` and `step` in units of disparity, `chunk` as above."""

    height: int
    width: int
    offset: float
    step: float
    chunk: bytes


def encode_label(disparity: NDArray[np.float32]) -> CodedLabel:
    """Compresses a finite disparity [h w] of any range.

    `decode_label` is off by at most half a step, 1/131070 of the map's range, and by float32's rounding.
    """
    codes, offset, step = quantise(disparity)
    height, width = disparity.shape
    return CodedLabel(height, width, offset, step, encode_codes(codes))


def decode_label(label: CodedLabel) -> NDArray[np.float32]:
    """Returns the map [h w]. Raises ValueError if the chunk is damaged."""
    codes = decode_codes(label.chunk, label.height, label.width)
    disparity = codes.astype(np.float32)
    disparity *= np.float32(label.step)
    disparity += np.float32(label.offset)
    return disparity


def quantise(disparity: NDArray[np.float32]) -> tuple[NDArray[np.uint16], float, float]:
    """Returns codes [h w], offset and step of disparity [h w]. The codes of a constant map are 0."""
    low, high = float(disparity.min()), float(disparity.max())
    step = (high - low) / STEPS
    if step < np.finfo(np.float32).tiny:
        return np.zeros(disparity.shape, np.uint16), low, 0.0
    scaled = disparity - np.float32(low)
    scaled *= np.float32(1 / step)
    return np.rint(scaled, out=scaled).astype(np.uint16), low, step


def encode_codes(codes: NDArray[np.uint16]) -> bytes:
    """Returns the chunk of codes [h w]."""
    rows = codes.copy()
    rows[:, 1:] -= codes[:, :-1]
    residual = rows.copy()
    residual[1:] -= rows[:-1]
    residual += _CENTRE
    planes = np.stack([residual.astype(np.uint8), (residual >> 8).astype(np.uint8)])  # low bytes, high bytes
    deflate = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    return deflate.compress(planes.tobytes()) + deflate.flush()


def decode_codes(chunk: bytes, height: int, width: int) -> NDArray[np.uint16]:
    """Returns the codes [h w] of a chunk. Raises ValueError if it is damaged or of another size."""
    try:
        stored = np.frombuffer(zlib.decompress(chunk), np.uint8)
    except zlib.error as error:
        raise ValueError(f"the label is damaged: {error}") from None
    if stored.size != 2 * height * width:
        raise ValueError(f"the label has {stored.size} bytes, expected {2 * height * width}")
    low, high = stored.reshape(2, height, width)
    residual = high.astype(np.uint16)
    residual <<= 8
    residual |= low
    residual -= _CENTRE
    np.cumsum(residual, axis=0, dtype=np.uint16, out=residual)
    return np.cumsum(residual, axis=1, dtype=np.uint16, out=residual)
