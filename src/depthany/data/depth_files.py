"""Read depth maps. Whatever is wrong with a file becomes one `ValueError` that names it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from depthany.data.depth_png import read_picture
from depthany.data.float_files import name_in_errors, read_dpt, read_pfm
from depthany.system.packages import optional, reason

DEPTH_SUFFIXES = (".png", ".tif", ".tiff", ".npy", ".npz", ".h5", ".hdf5", ".pfm", ".exr", ".dpt")
_DEPTH_NAMES = ("z", "depth")  # of an array among several, also behind the name of a layer


@dataclass(frozen=True)
class ArrayKeys:
    """Which array to read from a file that can hold several.

    h5_key: dataset inside an HDF5 file.
    npz_key: array inside an `.npz` file; None = the only one, or the one called depth.
    exr_channel: channel of an OpenEXR file; None = see `read_exr`.
    """

    h5_key: str = "depth"
    npz_key: str | None = None
    exr_channel: str | None = None


def read_depth(path: Path, h5_key: str = "depth") -> NDArray[np.float32]:
    """Reads the stored numbers of a depth map. The data set interprets scale and special values.

    Args:
        path: gray PNG or TIFF (8 or 16 bit, or float), `.npy`, `.npz`, `.h5`, `.hdf5`, `.pfm`, `.exr` or
            `.dpt`.
        h5_key: dataset inside an HDF5 file.

    Returns:
        [h w] float32, as stored.

    Raises:
        ValueError: the file cannot be read or is not a single-channel map.
    """
    return one_channel(path, read_stored(path, ArrayKeys(h5_key))).astype(np.float32)


def read_depth_16(path: Path) -> NDArray[np.float32]:
    """Reads the stored numbers of a depth map that has 16 bits or more; see `read_depth`.

    Raises:
        ValueError: see `read_depth`; or the file has 8 bits, as a picture of the depth has.
    """
    stored = one_channel(path, read_stored(path))
    if stored.dtype.itemsize < 2:
        raise ValueError(
            f"{path}: expected the 16-bit depth of the data set, got {stored.dtype}: a picture of the depth?"
        )
    return stored.astype(np.float32)


def read_stored(path: Path, keys: ArrayKeys = ArrayKeys()) -> NDArray[Any]:
    """Reads the stored numbers of a map in the type that the file has.

    Args:
        path: see `read_depth`.
        keys: which array to read from a file that holds several.

    Returns:
        Numbers of any shape and type; EXR as float32, 16-bit floats widened.

    Raises:
        ValueError: the file cannot be read, or `keys` does not name one of its arrays.
    """
    suffix = path.suffix.lower()
    if suffix == ".exr":
        return read_exr(path, keys.exr_channel)
    if suffix in _OF_FLOATS:
        return _OF_FLOATS[suffix](path)
    with name_in_errors(path):
        if suffix == ".npy":
            return np.load(path, allow_pickle=False)
        if suffix == ".npz":
            return _read_npz(path, keys.npz_key)
        if suffix in (".h5", ".hdf5"):
            return _read_h5(path, keys.h5_key)
        return read_picture(path)


def one_channel(path: Path, stored: NDArray[Any]) -> NDArray[Any]:
    """Returns the map [h w] in `stored` [h w], [h w 1] or [1 h w]; raises ValueError for another shape."""
    if stored.ndim == 3 and 1 in (stored.shape[0], stored.shape[2]):
        stored = stored[:, :, 0] if stored.shape[2] == 1 else stored[0]
    if stored.ndim != 2 or stored.dtype.kind not in "uifb":
        raise ValueError(
            f"{path}: expected one channel of numbers, got {stored.dtype} of shape {stored.shape}"
        )
    return stored


def read_exr(path: Path, channel: str | None = None) -> NDArray[np.float32]:
    """Reads one channel of an OpenEXR file.

    Uses the OpenEXR package (PyPI, Academy Software Foundation): OpenCV refuses EXR unless an environment
    variable is set before its import, and its wheels of version 5 cannot read EXR at all.

    Args:
        channel: its name, such as `R`. None = the only one, whatever its name; or the one called `Z` or
            `depth`, in any case, also behind a layer's name (`ViewLayer.Depth.Z`); or the first one if all
            are equal, apart from alpha (`A`).

    Returns:
        [h w] float32; 16-bit floats are widened.

    Raises:
        ValueError: the file is damaged or truncated, or it has no such channel or several that differ, or the
            package is not installed.
    """
    openexr = optional("OpenEXR", "reading OpenEXR files")
    with name_in_errors(path):
        # The library has no clear message for a missing file, a folder or another format.
        with path.open("rb") as start:
            if start.read(4) != b"\x76\x2f\x31\x01":
                raise ValueError("not an OpenEXR file, or damaged at its beginning")
        try:
            with openexr.File(str(path), separate_channels=True) as file:
                planes = {name: np.array(plane.pixels) for name, plane in file.channels().items()}
        except Exception as error:  # such as "Invalid part index '0': file has 0 parts" of a truncated file
            raise ValueError(f"the file is damaged or truncated ({reason(error)})") from None
        stored = planes[_channel(planes, channel)]
    return one_channel(path, stored).astype(np.float32)


def _channel(planes: dict[str, NDArray[Any]], wanted: str | None) -> str:
    """Returns the name of the channel that `read_exr` takes."""
    names = ", ".join(planes) or "none"
    if wanted is not None:
        if wanted not in planes:
            raise ValueError(f"expected the channel exr_channel={wanted}, the file has {names}")
        return wanted
    if (named := _called_depth(planes)) is not None:
        return named
    first, *others = [name for name in planes if name.split(".")[-1] != "A"] or list(planes) or [""]
    if not first:
        raise ValueError("expected one channel, the file has none")
    if not all(_same(planes[first], planes[other]) for other in others):
        raise ValueError(
            f"expected one channel, or Z, or equal ones; the file has {names}, which differ: set exr_channel"
        )
    return first


def _same(first: NDArray[Any], second: NDArray[Any]) -> bool:
    return np.array_equal(first, second, equal_nan=first.dtype.kind == "f")


def _called_depth(names: Iterable[str]) -> str | None:
    """Returns the name that says Z or depth; None unless exactly one does."""
    named = [name for name in names if name.lower().split(".")[-1] in _DEPTH_NAMES]
    return named[0] if len(named) == 1 else None


def _read_npz(path: Path, key: str | None) -> NDArray[Any]:
    with np.load(path, allow_pickle=False) as file:
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("expected an .npz archive of arrays, got a single array")
        names = list(file)
        chosen = key or (names[0] if len(names) == 1 else _called_depth(names))
        if chosen not in names:
            wanted = f"no array npz_key={key}" if key else "expected one array"
            raise ValueError(f"{wanted}; the file has {', '.join(names) or 'none'}: set npz_key")
        return file[chosen]


def read_mat(path: Path, key: str) -> NDArray[Any]:
    """Reads one variable of a MATLAB file, with the axes in MATLAB's order.

    Version 7.3 is HDF5, where the axes are reversed. SciPy reads older versions.

    Raises:
        ValueError: the file cannot be read, has no such variable, or SciPy is not installed.
    """
    with name_in_errors(path):
        path.open("rb").close()  # raises if the file is missing
        if h5py.is_hdf5(path):
            return _read_h5(path, key).T
    loadmat = optional("scipy.io", "reading MATLAB files before version 7.3").loadmat
    with name_in_errors(path):
        variables = loadmat(path, variable_names=[key])
        if key not in variables:
            raise ValueError(f"the file has no variable {key!r}")
        return np.asarray(variables[key])


def _read_h5(path: Path, key: str) -> NDArray[Any]:
    with h5py.File(path, "r") as file:
        if key not in file:
            raise ValueError(f"no dataset {key!r}; the file has {', '.join(file) or 'none'}: set h5_key")
        return np.asarray(file[key])


_OF_FLOATS = {".pfm": read_pfm, ".dpt": read_dpt}
