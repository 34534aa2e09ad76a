"""Read images; whatever is wrong with a file becomes one `ValueError` that names it."""

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from depthany.data.files import reason

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_CONVERTIBLE = {"L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "1"}

Image.MAX_IMAGE_PIXELS = 1_000_000_000  # panoramas are welcome; the limit guards against decompression bombs


def read_image(path: Path, convert: bool = False) -> NDArray[np.uint8]:
    """`decode_image` of a file: [h w 3] uint8 RGB."""
    return decode_image(read_bytes(path), str(path), convert)


def read_bytes(path: Path) -> bytes:
    """What a file holds; raises a `ValueError` that names one that cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot read the file: {reason(error)}") from None


def decode_image(stored: bytes, name: str, convert: bool = False) -> NDArray[np.uint8]:
    """Decode an image to RGB, turned upright by its EXIF orientation.

    Args:
        stored: bytes of a JPEG, PNG, WebP, BMP or TIFF file.
        name: of the file, for messages.
        convert: turn gray, palette, RGBA, CMYK and 16-bit images into 8-bit RGB instead of refusing them.

    Returns:
        [h w 3] uint8.

    Raises:
        ValueError: the file is damaged, or is not 8-bit RGB and `convert` is off.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(stored)) as file:
                file.load()
                upright = ImageOps.exif_transpose(file)
        except UnidentifiedImageError:
            raise ValueError(f"{name}: {not_an_image(len(stored))}") from None
        except Exception as error:  # whatever a damaged file leads Pillow's decoders to
            raise ValueError(f"{name}: cannot read the image: {reason(error)}") from None
    if upright.mode == "RGB":
        return np.asarray(upright)
    if not convert:
        raise ValueError(
            f"{name}: expected an 8-bit RGB image, got {_describe(upright.mode)}: "
            "convert the file, or set data.convert_images=true"
        )
    return _to_rgb(upright, name)


def not_an_image(size: int) -> str:
    """Why Pillow knows no such format."""
    return "the file is empty (0 bytes)" if size == 0 else "not an image, or damaged beyond its header"


def _to_rgb(image: Image.Image, name: str) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16"):
        gray = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)  # 16 bit to 8
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.mode not in _CONVERTIBLE:
        raise ValueError(f"{name}: cannot convert {_describe(image.mode)} to 8-bit RGB")
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
