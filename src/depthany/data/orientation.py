"""EXIF orientation of labeled photos: do the labels belong to the image as displayed, or as stored?

Cameras store a photo as the sensor sees it, and note in its EXIF how to turn it. The labels of a data set are
taken to be aligned to the image as displayed (`exif_orientation: apply`), unless the set says `ignore`.
"""

from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from depthany.data.image_formats import open_image
from depthany.data.samples import require_same_size

CHOICES = ("apply", "ignore")
_TURNED = (2, 3, 4, 5, 6, 7, 8)  # EXIF 2.32, tag 0x0112; 1 is upright
_SWAPS_SIDES = (5, 6, 7, 8)
_LOOKED_AT = 200  # images whose headers are read before training or evaluation


def require_aligned(
    image: str,
    stored: Any,
    image_hw: tuple[int, ...],
    labels: str,
    labels_hw: tuple[int, ...],
    upright: bool,
    what: str = "depth",
) -> None:
    """Raises ValueError, which names both files, if image and labels differ in height or width.

    Where EXIF orientation is the cause, it names the setting.

    Args:
        image, labels: paths, for the message.
        stored: content of the image file, or anything else if the set holds pixels.
        image_hw, labels_hw: height and width.
        upright: whether the image was turned by its EXIF orientation.
        what: what the labels are, for the message.
    """
    try:
        require_same_size(image, image_hw, labels, labels_hw, what)
    except ValueError as error:
        hint = size_hint(orientation_of(stored), image_hw, labels_hw, upright)
        raise ValueError(f"{error}{hint}") from None


def size_hint(orientation: int, image_hw: tuple[int, ...], labels_hw: tuple[int, ...], upright: bool) -> str:
    """Returns which setting makes image and labels fit, for a message; "" if EXIF is not the cause."""
    if orientation not in _SWAPS_SIDES or labels_hw != image_hw[::-1]:
        return ""
    size = f"{labels_hw[1]}x{labels_hw[0]}"
    if upright:
        return (
            f"; the image is stored as {size} and turned by its EXIF orientation {orientation}: "
            "exif_orientation=ignore leaves the images of this set as they are stored"
        )
    return (
        f"; the image is displayed as {size} by its EXIF orientation {orientation}: without "
        "exif_orientation=ignore it is turned"
    )


def orientation_of(stored: Any) -> int:
    """Returns the EXIF orientation by which an image file is turned; 1 if it has none, or is no file."""
    if not isinstance(stored, bytes):
        return 1
    try:
        with open_image(stored) as file:
            return _orientation(file)
    except Exception:  # Pillow's parsers raise many kinds on a damaged file; the decoder reports it
        return 1


def doubt(orientation: int, hw: tuple[int, ...]) -> str:
    """Returns why the size of the labels does not tell whether they belong to the image as displayed; ""
    if it tells.

    Args:
        hw: height and width of the image, which the labels have too.
    """
    if orientation not in _TURNED or (orientation in _SWAPS_SIDES and hw[0] != hw[1]):
        return ""
    return (
        f"turned by its EXIF orientation {orientation}; its labels are assumed to be aligned to the image as "
        "displayed: exif_orientation=apply confirms it, ignore leaves the images as they are stored"
    )


def is_confirmed(dataset: Any) -> bool:
    """Returns whether a set has no setting `exif_orientation`, or has a value there."""
    return getattr(dataset, "exif_orientation", "") is not None


def orientation_warning(name: str, dataset: Any) -> str:
    """Returns a line on turned images whose labels may not be turned, by the headers of some images; "" if
    there are none, or the set says how it is.

    Args:
        name: name of the set, for the line.
        dataset: a labeled set. Only sets that have the setting `exif_orientation` are looked at.
    """
    if is_confirmed(dataset) or not len(dataset):
        return ""
    count = min(len(dataset), _LOOKED_AT)
    paths = [dataset.files(k * len(dataset) // count)[0] for k in range(count)]
    doubtful = [(path, why) for path in paths if (why := _doubt_of_file(Path(path)))]
    if not doubtful:
        return ""
    path, why = doubtful[0]
    return f"{name}: {len(doubtful)} of {count} images looked at are turned by EXIF, such as {path}: {why}"


def _doubt_of_file(path: Path) -> str:
    if not path.is_file():  # such as a pipe, at which opening would wait
        return ""
    try:
        with Image.open(path) as file:  # reads only the header
            return doubt(_orientation(file), file.size)
    except Exception:  # not a picture, or damaged: the decoder reports it
        return ""


def _orientation(file: Image.Image) -> int:
    return int(file.getexif().get(ExifTags.Base.Orientation, 1))
