"""Read depth maps; whatever is wrong with a file becomes one `ValueError` that names it."""

import io
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from depthany.data.depth_png import decode_gray_16
from depthany.data.files import reason
from depthany.data.images import not_an_image

DEPTH_SUFFIXES = (".png", ".tif", ".tiff", ".npy", ".h5", ".hdf5")


def read_depth(path: Path, h5_key: str = "depth") -> NDArray[np.float32]:
    """Read the stored numbers of a depth map; scale and special values are the data set's affair.

    Args:
        path: 16-bit (or 8-bit, or float) gray PNG or TIFF, `.npy`, `.h5` or `.hdf5`.
        h5_key: dataset inside an HDF5 file.

    Returns:
        [h w] float32, as stored.

    Raises:
        ValueError: the file cannot be read or is not a single-channel map.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            stored = np.load(path, allow_pickle=False)
        elif suffix in (".h5", ".hdf5"):
            stored = _read_h5(path, h5_key)
        else:
            stored = _read_picture(path)
    except UnidentifiedImageError:
        raise ValueError(f"{path}: {not_an_image(path.stat().st_size)}") from None
    except Exception as error:  # whatever a damaged file leads Pillow, NumPy and HDF5 to
        raise ValueError(f"{path}: cannot read the depth map: {reason(error)}") from None
    if stored.ndim == 3 and stored.shape[2] == 1:
        stored = stored[:, :, 0]
    if stored.ndim != 2 or stored.dtype.kind not in "uif":
        raise ValueError(
            f"{path}: expected one channel of numbers, got {stored.dtype} of shape {stored.shape}"
        )
    return stored.astype(np.float32)


def _read_picture(path: Path) -> NDArray:
    data = path.read_bytes()
    if (gray := decode_gray_16(data)) is not None:
        return gray
    with Image.open(io.BytesIO(data)) as file:
        return np.asarray(file)


def _read_h5(path: Path, key: str) -> NDArray[np.float32]:
    with h5py.File(path, "r") as file:
        if key not in file:
            raise ValueError(f"no dataset {key!r}; the file has {', '.join(file) or 'none'}: set h5_key")
        return np.asarray(file[key])
