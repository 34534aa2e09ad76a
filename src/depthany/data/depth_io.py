"""Read images and depth maps; whatever is wrong with a file becomes one `ValueError` that names it."""

import warnings
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
DEPTH_SUFFIXES = (".png", ".tif", ".tiff", ".npy", ".h5", ".hdf5")
_CONVERTIBLE = {"L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "1"}

Image.MAX_IMAGE_PIXELS = 1_000_000_000  # panoramas are welcome; the limit guards against decompression bombs


def read_image(path: Path, convert: bool = False) -> NDArray[np.uint8]:
    """Read an image as RGB, turned upright by its EXIF orientation.

    Args:
        path: JPEG, PNG, WebP, BMP or TIFF.
        convert: turn gray, palette, RGBA, CMYK and 16-bit images into 8-bit RGB instead of refusing them.

    Returns:
        [h w 3] uint8.

    Raises:
        ValueError: the file cannot be read, is damaged, or is not 8-bit RGB and `convert` is off.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as file:
                file.load()
                upright = ImageOps.exif_transpose(file)
        except UnidentifiedImageError:
            raise ValueError(f"{path}: {_not_an_image(path)}") from None
        except Exception as error:  # whatever a damaged file leads Pillow's decoders to
            raise ValueError(f"{path}: cannot read the image: {_reason(error)}") from None
    if upright.mode == "RGB":
        return np.asarray(upright)
    if not convert:
        raise ValueError(
            f"{path}: expected an 8-bit RGB image, got {_describe(upright.mode)}: "
            "convert the file, or set data.convert_images=true"
        )
    return _to_rgb(upright, path)


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
            with Image.open(path) as file:
                stored = np.asarray(file)
    except UnidentifiedImageError:
        raise ValueError(f"{path}: {_not_an_image(path)}") from None
    except Exception as error:  # whatever a damaged file leads Pillow, NumPy and HDF5 to
        raise ValueError(f"{path}: cannot read the depth map: {_reason(error)}") from None
    if stored.ndim == 3 and stored.shape[2] == 1:
        stored = stored[:, :, 0]
    if stored.ndim != 2 or stored.dtype.kind not in "uif":
        raise ValueError(
            f"{path}: expected one channel of numbers, got {stored.dtype} of shape {stored.shape}"
        )
    return stored.astype(np.float32)


def list_files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files below `folder`, by their path without suffix relative to it, in sorted order.

    Raises:
        ValueError: the folder is missing, has no such file, or has two that differ in the suffix only.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder (looked from {Path.cwd()})")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            raise ValueError(f"{path} and {found[stem].name} have the same stem: remove one of them")
        found[stem] = path
    if not found:
        raise ValueError(f"{folder}: no file with suffix {', '.join(suffixes)}")
    return found


def _read_h5(path: Path, key: str) -> NDArray[np.float32]:
    with h5py.File(path, "r") as file:
        if key not in file:
            raise ValueError(f"no dataset {key!r}; the file has {', '.join(file) or 'none'}: set h5_key")
        return np.asarray(file[key])


def _to_rgb(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16"):
        gray = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)  # 16 bit to 8
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.mode not in _CONVERTIBLE:
        raise ValueError(f"{path}: cannot convert {_describe(image.mode)} to 8-bit RGB")
    return np.asarray(image.convert("RGB"))


def _describe(mode: str) -> str:
    names = {
        "L": "gray",
        "LA": "gray with alpha",
        "P": "a palette",
        "F": "float",
        "I": "32-bit gray",
        "1": "1-bit",
    }
    return "16-bit gray" if mode.startswith("I;16") else names.get(mode, mode)


def _not_an_image(path: Path) -> str:
    if path.stat().st_size == 0:
        return "the file is empty (0 bytes)"
    return "not an image, or damaged beyond its header"


def _reason(error: BaseException) -> str:
    strerror = getattr(error, "strerror", None)  # "Permission denied" without the path a second time
    return str(strerror or str(error) or type(error).__name__).strip().split("\n", 1)[0]
