"""Read images; whatever is wrong with a file becomes one `ValueError` that names it."""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from depthany.system.packages import reason

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_CONVERTIBLE = {"L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "1"}

MAX_PIXELS = 1_000_000_000  # panoramas are welcome; the limit guards against decompression bombs
Image.MAX_IMAGE_PIXELS = MAX_PIXELS

# EXIF 2.32, tag 0x0112: what turns the stored picture upright.
_UPRIGHT: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels),
}


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
    return decode_photo(stored, name, convert).pixels


@dataclass(frozen=True)
class Photo:
    """An upright image, or what its decoder made of it at 1/reduction.

    pixels: [height/reduction width/reduction 3] uint8 RGB, sides rounded up.
    height, width: of the whole image.
    reduction: 1, 2, 4 or 8; a pixel is the low-pass filtered mean of so many by so many.
    """

    pixels: NDArray[np.uint8]
    height: int
    width: int
    reduction: int = 1


def decode_photo(stored: bytes, name: str, convert: bool = False, least: int | None = None) -> Photo:
    """`decode_image` that may take a JPEG at 1/2, 1/4 or 1/8, which is less work than the whole.

    Args:
        stored, name, convert: see `decode_image`.
        least: pixels that the shorter side keeps; None decodes everything whole.

    Raises:
        ValueError: see `decode_image`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(stored)) as file:
                if (photo := _decode_jpeg(stored, file, least)) is not None:
                    return photo
                file.load()
                upright = ImageOps.exif_transpose(file)
        except UnidentifiedImageError:
            raise ValueError(f"{name}: {not_an_image(len(stored))}") from None
        except Exception as error:  # whatever a damaged file leads Pillow's decoders to
            raise ValueError(f"{name}: cannot read the image: {reason(error)}") from None
    pixels = _rgb(upright, name, convert)
    return Photo(pixels, *pixels.shape[:2])


def _decode_jpeg(stored: bytes, file: Image.Image, least: int | None) -> Photo | None:
    """A colour JPEG through simplejpeg; None for anything else and wherever libjpeg finds fault.

    Pillow judges the latter: it refuses what is truncated, and reads what has stray bytes or a rare layout.
    Whole images are the same from both, which use libjpeg-turbo; simplejpeg makes fewer copies.
    """
    if file.format not in ("JPEG", "MPO") or file.mode != "RGB":  # MPO: a JPEG with more pictures behind it
        return None
    width, height = file.size
    # Only halves: the other scales of libjpeg, such as 5/8, have no SIMD code and take longer than the whole.
    k = max((k for k in (2, 4, 8) if least is not None and min(width, height) >= k * least), default=1)
    try:
        pixels = simplejpeg.decode_jpeg(stored, min_height=-(-height // k), min_width=-(-width // k))
    except ValueError:
        return None
    orientation = file.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation in _UPRIGHT:
        pixels = np.ascontiguousarray(_UPRIGHT[orientation](pixels))
    height, width = (width, height) if orientation in (5, 6, 7, 8) else (height, width)
    return Photo(pixels, height, width, k)


def not_an_image(size: int) -> str:
    """Why Pillow knows no such format."""
    return "the file is empty (0 bytes)" if size == 0 else "not an image, or damaged beyond its header"


def _rgb(image: Image.Image, name: str, convert: bool) -> NDArray[np.uint8]:
    if image.mode == "RGB":
        return np.asarray(image)
    if not convert:
        raise ValueError(
            f"{name}: expected an 8-bit RGB image, got {_describe(image.mode)}: "
            "convert the file, or set data.convert_images=true"
        )
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
