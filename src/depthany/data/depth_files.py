"""Read depth maps. Whatever is wrong with a file becomes one `ValueError` that names it."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from depthany.data.depth_png import decode_gray_16
from depthany.data.images import not_an_image
from depthany.system.packages import optional, reason

DEPTH_SUFFIXES = (".png", ".tif", ".tiff", ".npy", ".h5", ".hdf5", ".pfm", ".exr", ".dpt")
_DPT_TAG = 202021.25  # "PIEH" as float32, with which every .dpt of Sintel begins (sintel_io.py of its SDK)


def read_depth(path: Path, h5_key: str = "depth") -> NDArray[np.float32]:
    """Reads the stored numbers of a depth map. The data set interprets scale and special values.

    Args:
        path: 16-bit (or 8-bit, or float) gray PNG or TIFF, `.npy`, `.h5`, `.hdf5`, `.pfm`, `.exr` or `.dpt`.
        h5_key: dataset inside an HDF5 file.

    Returns:
        [h w] float32, as stored.

    Raises:
        ValueError: the file cannot be read or is not a single-channel map.
    """
    suffix = path.suffix.lower()
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix](path)
    with _name_in_errors(path):
        if suffix == ".npy":
            stored = np.load(path, allow_pickle=False)
        elif suffix in (".h5", ".hdf5"):
            stored = _read_h5(path, h5_key)
        else:
            stored = _read_picture(path)
    return _one_channel(path, stored)


def read_pfm(path: Path) -> NDArray[np.float32]:
    """Reads a gray portable float map, whose rows are stored from the bottom up.

    Header: `Pf`, width and height, scale; a negative scale means little endian. The size of the scale has no
    agreed meaning and is ignored, as in MVSNet's reader of BlendedMVS. OpenCV 5 divides by it, and reports a
    damaged file only as no image, so this is our own reader. Format: netpbm.sourceforge.net.

    Returns:
        [h w] float32, the first row on top.

    Raises:
        ValueError: the file is damaged, truncated, or has colours.
    """
    with _name_in_errors(path):
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


def read_exr(path: Path, channel: str | None = None) -> NDArray[np.float32]:
    """Reads one channel of an OpenEXR file.

    Uses the OpenEXR package (PyPI, Academy Software Foundation): OpenCV refuses EXR unless an environment
    variable is set before its import, and its wheels of version 5 cannot read EXR at all.

    Args:
        channel: such as `R` or `Z`; None = the only one, whatever its name.

    Returns:
        [h w] float32; 16-bit floats are widened.

    Raises:
        ValueError: the file is damaged or truncated, or it has no such channel or several of them, or the
            package is not installed.
    """
    openexr = optional("OpenEXR", "reading OpenEXR files")
    with _name_in_errors(path):
        # The library has no clear message for a missing file, a folder or another format.
        with path.open("rb") as start:
            if start.read(4) != b"\x76\x2f\x31\x01":
                raise ValueError("not an OpenEXR file, or damaged at its beginning")
        try:
            with openexr.File(str(path), separate_channels=True) as file:
                planes = {name: np.array(plane.pixels) for name, plane in file.channels().items()}
        except Exception as error:  # such as "Invalid part index '0': file has 0 parts" of a truncated file
            raise ValueError(f"the file is damaged or truncated ({reason(error)})") from None
        name = channel or next(iter(planes), "")
        if name not in planes or (channel is None and len(planes) > 1):
            wanted = f"channel {channel}" if channel else "one channel"
            raise ValueError(f"expected {wanted}, the file has {', '.join(planes) or 'none'}")
    return _one_channel(path, planes[name])


def read_dpt(path: Path) -> NDArray[np.float32]:
    """Reads a depth map of Sintel: float32 tag 202021.25, int32 width, int32 height, float32 rows, all little
    endian (sintel_io.py of the data set).

    Returns:
        [h w] float32 in metres.

    Raises:
        ValueError: the tag differs, or the file is too short or too long.
    """
    with _name_in_errors(path):
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
    with _name_in_errors(path):
        return _floats(path.read_bytes(), 0, height, width, "<f4").astype(np.float32)


def read_mat(path: Path, key: str) -> NDArray[Any]:
    """Reads one variable of a MATLAB file, with the axes in MATLAB's order.

    Version 7.3 is HDF5, where the axes are reversed. SciPy reads older versions.

    Raises:
        ValueError: the file cannot be read, has no such variable, or SciPy is not installed.
    """
    with _name_in_errors(path):
        path.open("rb").close()  # raises if the file is missing
        if h5py.is_hdf5(path):
            return _read_h5(path, key).T
    loadmat = optional("scipy.io", "reading MATLAB files before version 7.3").loadmat
    with _name_in_errors(path):
        variables = loadmat(path, variable_names=[key])
        if key not in variables:
            raise ValueError(f"the file has no variable {key!r}")
        return np.asarray(variables[key])


@contextmanager
def _name_in_errors(path: Path) -> Iterator[None]:
    """Turns every error inside into a ValueError of one line that names the file."""
    try:
        yield
    except UnidentifiedImageError:
        raise ValueError(f"{path}: {not_an_image(path.stat().st_size)}") from None
    except Exception as error:  # a damaged file can raise almost anything in these libraries
        if str(error).startswith(f"{path}: "):  # names it already
            raise
        raise ValueError(f"{path}: cannot read the depth map: {reason(error)}") from None


def _one_channel(path: Path, stored: NDArray[Any]) -> NDArray[np.float32]:
    if stored.ndim == 3 and stored.shape[2] == 1:
        stored = stored[:, :, 0]
    if stored.ndim != 2 or stored.dtype.kind not in "uifb":
        raise ValueError(
            f"{path}: expected one channel of numbers, got {stored.dtype} of shape {stored.shape}"
        )
    return stored.astype(np.float32)


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


def _read_picture(path: Path) -> NDArray[Any]:
    data = path.read_bytes()
    if (gray := decode_gray_16(data)) is not None:
        return gray
    with Image.open(io.BytesIO(data)) as file:
        return np.asarray(file)


def _read_h5(path: Path, key: str) -> NDArray[Any]:
    with h5py.File(path, "r") as file:
        if key not in file:
            raise ValueError(f"no dataset {key!r}; the file has {', '.join(file) or 'none'}: set h5_key")
        return np.asarray(file[key])


_BY_SUFFIX = {".pfm": read_pfm, ".exr": read_exr, ".dpt": read_dpt}
