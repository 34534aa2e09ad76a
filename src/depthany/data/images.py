"""Read images. Whatever is wrong with a file becomes one `ValueError` that names it."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from depthany.data.image_formats import MissingDecoder, open_image
from depthany.system.packages import reason

_CONVERTIBLE = {"L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "1"}

MAX_PIXELS = 1_000_000_000  # large enough for panoramas; guards against decompression bombs
Image.MAX_IMAGE_PIXELS = MAX_PIXELS

# EXIF 2.32, tag 0x0112 (orientation): the operation that turns the stored picture upright.
_UPRIGHT: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels),
}
# Orientations after which rows, or columns, run against their order in the file, by the operations above.
_ROWS_REVERSED, _COLUMNS_REVERSED = (3, 4, 7, 8), (2, 3, 6, 7)
_INVERSE = {6: 8, 8: 6}  # the others undo themselves


def turned_by_decoder(file: Image.Image) -> int:
    """Returns the EXIF orientation by which Pillow turns a file that it loads, as it does with TIFF; else 1.

    The size of such a file is that of the image as displayed, even before it is loaded.
    """
    return int(file.getexif().get(ExifTags.Base.Orientation, 1)) if file.format == "TIFF" else 1


def read_image(path: Path, convert: bool = False) -> NDArray[np.uint8]:
    """Reads an image file as [h w 3] uint8 RGB; see `decode_image`."""
    return decode_image(read_bytes(path), str(path), convert)


def read_bytes(path: Path) -> bytes:
    """Returns the content of a file. Raises ValueError, which names the file, if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot read the file: {reason(error)}") from None


def decode_image(stored: bytes, name: str, convert: bool = False, upright: bool = True) -> NDArray[np.uint8]:
    """Decodes an image to RGB and turns it upright by its EXIF orientation.

    Args:
        stored: bytes of a JPEG, MPO, PNG, WebP, AVIF, HEIC (extra `heic`), BMP or TIFF file.
        name: name of the file, for messages.
        convert: turn gray, palette, RGBA, CMYK and 16-bit images into 8-bit RGB instead of refusing them.
        upright: turn the image by its EXIF orientation, as viewers show it. Off, it stays as it is stored.

    Returns:
        [h w 3] uint8.

    Raises:
        ValueError: the file is damaged, or is not 8-bit RGB and `convert` is off.
    """
    return decode_photo(stored, name, convert, upright=upright).pixels


@dataclass(frozen=True)
class Photo:
    """An image, decoded whole or at a reduced size.

    pixels: [ceil(height/reduction) ceil(width/reduction) 3] uint8 RGB.
    height, width: height and width of the whole image, in pixels.
    reduction: 1, 2, 4 or 8. A decoded pixel is the low-pass filtered mean of reduction x reduction pixels.
    reversed: whether rows, and columns, run against their order in the file. The last row and column of the
        file stand for fewer pixels of the image where its sides are no multiple of `reduction`; reversed,
        they come first.
    """

    pixels: NDArray[np.uint8]
    height: int
    width: int
    reduction: int = 1
    reversed: tuple[bool, bool] = (False, False)


def decode_photo(
    stored: bytes,
    name: str,
    convert: bool = False,
    min_hw: tuple[int, int] | None = None,
    upright: bool = True,
) -> Photo:
    """Decodes like `decode_image`, but may decode a JPEG at 1/2, 1/4 or 1/8 of its size, which is faster.

    Args:
        stored, name, convert, upright: see `decode_image`.
        min_hw: height and width, in pixels, that the image keeps at least. None decodes every image whole.

    Raises:
        ValueError: see `decode_image`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with open_image(stored) as file:
                if (photo := _decode_jpeg(stored, file, min_hw, upright)) is not None:
                    return photo
                turned_back = 1 if upright else turned_by_decoder(file)
                file.load()
                image = ImageOps.exif_transpose(file) if upright else file
        except MissingDecoder as error:
            raise ValueError(f"{name}: {error}") from None
        except UnidentifiedImageError:
            raise ValueError(f"{name}: {not_an_image(len(stored))}") from None
        except Exception as error:  # a damaged file can raise almost anything in Pillow's decoders
            raise ValueError(f"{name}: cannot read the image: {reason(error)}") from None
    pixels = _rgb(image, name, convert)
    if turned_back in _UPRIGHT:
        pixels = np.ascontiguousarray(_UPRIGHT[_INVERSE.get(turned_back, turned_back)](pixels))
    return Photo(pixels, *pixels.shape[:2])


def _decode_jpeg(
    stored: bytes, file: Image.Image, min_hw: tuple[int, int] | None, upright: bool
) -> Photo | None:
    """Decodes a colour JPEG with simplejpeg. Returns None for other files and if libjpeg reports an error.

    Pillow then decides: it refuses a truncated file, and reads one with stray bytes or a rare layout. Both
    use libjpeg-turbo and return the same pixels for a whole image; simplejpeg makes fewer copies.
    """
    if file.format not in ("JPEG", "MPO") or file.mode != "RGB":  # MPO: a JPEG followed by more pictures
        return None
    width, height = file.size  # as stored
    orientation = file.getexif().get(ExifTags.Base.Orientation, 1) if upright else 1
    turned = orientation in (5, 6, 7, 8)
    k = _reduction((width, height) if turned else (height, width), min_hw)
    try:
        pixels = simplejpeg.decode_jpeg(stored, min_height=-(-height // k), min_width=-(-width // k))
    except ValueError:
        return None
    if orientation in _UPRIGHT:
        pixels = np.ascontiguousarray(_UPRIGHT[orientation](pixels))
    is_reversed = orientation in _ROWS_REVERSED, orientation in _COLUMNS_REVERSED
    return Photo(pixels, width if turned else height, height if turned else width, k, is_reversed)


def _reduction(image_hw: tuple[int, int], min_hw: tuple[int, int] | None) -> int:
    """Returns the largest reduction that keeps at least `min_hw` pixels of an image.

    Only halves: other scales of libjpeg, such as 5/8, have no SIMD code and take longer than the whole image.
    """
    if min_hw is None:
        return 1
    fits = (k for k in (2, 4, 8) if all(side >= k * least for side, least in zip(image_hw, min_hw)))
    return max(fits, default=1)


def not_an_image(size: int) -> str:
    """Returns why Pillow does not recognise a file of `size` bytes, for a message."""
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
