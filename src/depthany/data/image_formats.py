"""Which files count as images, which are passed over, and how Pillow opens them."""

import io
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.util import find_spec

from PIL import Image, features

from depthany.system.packages import how_to_install, reason

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".mpo"),  # an MPO is a JPEG followed by more pictures, which are not read
    *(".png", ".webp", ".avif", ".bmp", ".tif", ".tiff"),
)
HEIC_SUFFIXES = (".heic", ".heif", ".hif")  # need a package
ALL_IMAGE_SUFFIXES = IMAGE_SUFFIXES + HEIC_SUFFIXES
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")

# Files that a user takes for pictures, videos or archives of them: where they are not read, they are counted.
# Other files, such as .txt and .json, are not reported.
_MEDIA_SUFFIXES = (
    *ALL_IMAGE_SUFFIXES,
    *VIDEO_SUFFIXES,
    *(".jpe", ".jif", ".jfi", ".jp2", ".j2k", ".jpx", ".jxl", ".gif", ".apng", ".tga", ".psd", ".svg"),
    *(".pbm", ".pgm", ".ppm", ".pnm", ".hdr", ".exr", ".pfm", ".npy", ".npz", ".mat", ".h5", ".hdf5"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"),  # raw photos
    *(".3gp", ".mts", ".m2ts", ".flv", ".ogv"),
    *(".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar", ".zip", ".7z", ".rar"),
)
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"}  # ISO/IEC 23008-12, annex B
_AVIF_BRANDS = {b"avif", b"avis"}
NEEDS_HEIC = "install depthany[heic]"


class MissingDecoder(ValueError):
    """The decoder for the format of an image is not installed. `format_name` names it, such as HEIC."""

    def __init__(self, format_name: str, message: str) -> None:
        super().__init__(message)
        self.format_name = format_name


def image_suffixes() -> tuple[str, ...]:
    """Returns the endings of image files that can be read here: HEIC needs the package pillow-heif."""
    return ALL_IMAGE_SUFFIXES if has_heic() else IMAGE_SUFFIXES


def has_heic() -> bool:
    """Returns whether the package pillow-heif is installed."""
    return find_spec("pillow_heif") is not None


def open_image(stored: bytes, formats: tuple[str, ...] | None = None) -> Image.Image:
    """Opens an image file with Pillow, which reads only its header.

    Args:
        formats: the formats allowed besides HEIC, by Pillow's names; None = all.

    Raises:
        MissingDecoder: the package for its format is not installed.
        Exception: the file is damaged; Pillow raises many kinds.
    """
    brands = _brands(stored)
    if brands & _HEIC_BRANDS:
        if not has_heic():
            raise MissingDecoder("HEIC", f"HEIC needs the package pillow-heif: {how_to_install('heic')}")
        _register_heic()
        formats = formats and (*formats, "HEIF")
    elif brands & _AVIF_BRANDS and not features.check("avif"):
        raise MissingDecoder("AVIF", "this build of Pillow reads no AVIF: pip install --upgrade pillow")
    return Image.open(io.BytesIO(stored), formats=formats)


def _brands(stored: bytes) -> set[bytes]:
    """Returns the brands of a file in the ISO base media format, such as HEIC; an empty set for others."""
    if stored[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(stored[:4], "big"), 256)
    return {stored[8:12], *(stored[at : at + 4] for at in range(16, end, 4))}


@cache
def _register_heic() -> None:
    try:
        import pillow_heif
    except ImportError as error:  # installed, but its library does not load
        raise MissingDecoder("HEIC", f"the package pillow-heif cannot be loaded: {reason(error)}") from None
    pillow_heif.register_heif_opener()


def count_passed_over(names: Iterable[str], suffixes: tuple[str, ...], counts: Counter[str]) -> None:
    """Adds to `counts`, by suffix, the files that look like images or other media and are not read.

    Args:
        names: names of files.
        suffixes: endings of files that are read, in lower case.
    """
    for name in names:
        if not name.lower().endswith(suffixes) and (suffix := media_suffix(name)):
            counts[suffix] += 1


def media_suffix(name: str) -> str:
    """Returns the ending, in lower case, by which a file looks like an image, a video or an archive; "" if it
    does not, or is hidden.
    """
    lower = name.lower()
    if not lower.endswith(_MEDIA_SUFFIXES) or is_hidden(name):
        return ""
    return next(end for end in _MEDIA_SUFFIXES if lower.endswith(end))


def is_hidden(name: str) -> bool:
    """Returns whether a path names a hidden file, such as the `._a.jpg` that macOS leaves on other disks."""
    return name.rpartition("/")[2].startswith(".")


def describe_passed_over(counts: Mapping[str, int], heic: str = NEEDS_HEIC) -> str:
    """Returns a text such as "4 passed over: 3 .heic (install depthany[heic]), 1 .gif"; "" if there are none.

    Args:
        counts: number of files by suffix.
        heic: remedy for HEIC files.
    """
    parts = [
        f"{count} {suffix}{f' ({heic})' * (suffix in HEIC_SUFFIXES)}"
        for suffix, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    return f"{sum(counts.values())} passed over: {', '.join(parts)}" if parts else ""
