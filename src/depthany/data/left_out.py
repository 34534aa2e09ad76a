"""Images that training left out or converted: counted by reason, listed in a file, limited to a share."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depthany.data.image_formats import MissingDecoder, open_image
from depthany.system.files import why, write_atomically

SKIPPED, CONVERTED = "left out", "converted"
_LEAST_COUNTED = 200  # the share is of at least so many images, so one bad file at the start ends no run
_MODES = {  # Pillow's name of a mode -> ours, for images that are converted to 8-bit RGB
    "L": "gray",
    "LA": "gray with alpha",
    "1": "1-bit",
    "P": "palette",
    "PA": "palette",
    "RGBA": "RGBA",
    "CMYK": "CMYK",
    "YCbCr": "YCbCr",
}


@dataclass(frozen=True)
class ImageIssue:
    """An image that was left out or converted.

    action: SKIPPED or CONVERTED.
    reason: a few words that many images share; they are counted by it.
    name: name of the image, or a message that begins with the name.
    """

    action: str
    reason: str
    name: str
    labeled: bool


@dataclass(frozen=True)
class ImageHeader:
    """What the first bytes of an image file say; the defaults if they could not be read.

    side: the smaller side, in pixels.
    colours: the colour mode in words; empty for 8-bit RGB.
    animated: the file has several frames, of which the first is read.
    empty: the file has no byte.
    without_decoder: the format, such as HEIC, if its decoder is not installed; else empty.
    """

    side: int | None = None
    colours: str = ""
    animated: bool = False
    empty: bool = False
    without_decoder: str = ""

    def fault(self, min_side: int, convert: bool) -> str:
        """Returns why an image is unusable, in a few words, once it is known to be."""
        if self.side is not None and self.side < min_side:
            return f"below {min_side} pixels"
        if self.without_decoder:
            return f"{self.without_decoder} without its decoder"
        if self.colours and not convert:
            return f"{self.colours} without data.convert_images"
        return "empty" if self.empty else "damaged or missing"

    @property
    def conversion(self) -> str:
        """What reading changes in the image, in a word; empty if nothing."""
        return "animated" if self.animated else self.colours

    def require_side(self, min_side: int, name: str) -> None:
        """Raises ValueError, which names the image, if its smaller side is below `min_side` pixels."""
        if self.side is not None and self.side < min_side:
            raise ValueError(f"{name}: its smaller side has {self.side} pixels, data.min_side is {min_side}")


def read_header(stored: bytes | NDArray[np.uint8] | None) -> ImageHeader:
    """Reads the header of `stored`, the bytes of an image file; of pixels [h w 3] uint8 the size.

    Returns the defaults for what cannot be read (None: not even the file): the decoder reports why.
    """
    if stored is None:
        return ImageHeader()
    if not isinstance(stored, bytes):
        return ImageHeader(side=min(stored.shape[:2]))
    try:
        with open_image(stored) as file:
            mode, side, animated = file.mode, min(file.size), _is_animated(file)
    except MissingDecoder as error:
        return ImageHeader(without_decoder=error.format_name)
    except Exception:  # a damaged file can raise almost anything in Pillow's parsers
        return ImageHeader(empty=not stored)
    colours = "16-bit gray" if mode.startswith("I;16") else _MODES.get(mode, mode)
    return ImageHeader(side, "" if mode == "RGB" else colours, animated)


def _is_animated(file: Any) -> bool:
    """The further pictures in an MPO or HEIC file are previews or the other eye's view, not frames."""
    return file.format not in ("MPO", "HEIF") and bool(getattr(file, "is_animated", False))


class ImageReport:
    """The list of issues of a run. A resumed run continues it from its checkpoint.

    A line has five fields, separated by tabs: micro-batch, labeled or unlabeled, action, reason, image.

    Args:
        path: the file; it is created with its first line.
        start: first micro-batch of this run. Later lines were written after the checkpoint and are removed.
        max_share: largest share of the labeled, or of the unlabeled, images that may be left out.
        goes_on: lines that cannot be written are lost, which is told once; else that raises.
        tell: receives a line for the user.

    Raises:
        ValueError: the file holds something else.
    """

    def __init__(
        self,
        path: Path,
        start: int,
        max_share: float,
        goes_on: bool = False,
        tell: Callable[[str], None] = print,
    ) -> None:
        self.path, self.max_share = path, max_share
        self.lost = 0  # lines
        self._goes_on, self._tell = goes_on, tell
        lines = list(_lines(path))
        kept = [(k, issue) for k, issue in lines if k < start]
        self.counts = Counter((issue.labeled, issue.action, issue.reason) for _, issue in kept)
        if len(kept) < len(lines) or _ends_within_a_line(path):
            text = "".join(_line(k, issue) for k, issue in kept)
            write_atomically(path, lambda partial: partial.write_text(text, "utf-8", "surrogateescape"))

    def add(self, k: int, issues: Sequence[ImageIssue], read: tuple[int, int]) -> None:
        """Adds the issues of micro-batch `k`.

        Args:
            read: numbers of labeled and unlabeled images read so far, this micro-batch included.

        Raises:
            ValueError: more than `max_share` of them were left out, or the file cannot be written.
        """
        if issues:
            self.counts.update((issue.labeled, issue.action, issue.reason) for issue in issues)
            self._append([_line(k, issue) for issue in issues])
            for labeled, count in zip((True, False), read):
                self._require_few(labeled, count)

    def _append(self, lines: Sequence[str]) -> None:
        """Appends all lines or none of them."""
        left = "".join(lines).encode("utf-8", "surrogateescape")
        try:
            with open(self.path, "ab", buffering=0) as file:
                end = file.tell()
                try:
                    while left:
                        left = left[file.write(left) :]
                except OSError:
                    if file.tell() > end:
                        file.truncate(end)
                    raise
        except OSError as error:
            failure = f"cannot write the list of images that were left out, {self.path}: {why(error)}"
            if not self._goes_on:
                raise ValueError(
                    f"{failure}; the last checkpoint is whole: make room, then the same command continues"
                ) from error
            if not self.lost:
                self._tell(f"warning: {failure}; training goes on, and images are missing in it from here on")
            self.lost += len(lines)

    def _require_few(self, labeled: bool, read: int) -> None:
        bad, reasons = _by_reason(self.counts, labeled, SKIPPED)
        require_few(bad, read, self.max_share, _kind(labeled), f"{reasons}; they are listed in {self.path}")


def require_few(left_out: int, read: int, max_share: float, kind: str, details: str) -> None:
    """Raises a `ValueError` if more images were left out than `max_share` of those that were read.

    Args:
        kind: kind of the images, for the message. details: its end, on what was left out.
    """
    if left_out > max_share * max(read, _LEAST_COUNTED):
        raise ValueError(
            f"{left_out} of {read} {kind} images were left out, more than "
            f"data.max_unreadable_share={max_share:g} of them (or of the first {_LEAST_COUNTED}): {details}"
        )


def require_some_used(path: Path, read: tuple[int, int]) -> None:
    """Raises a `ValueError` if all labeled, or all unlabeled, images of a run were left out.

    Args:
        path: list of the run, see `ImageReport`.
        read: numbers of labeled and unlabeled images that the run has read.
    """
    counts = Counter((issue.labeled, issue.action, issue.reason) for _, issue in _lines(path))
    for labeled, count in zip((True, False), read):
        bad, reasons = _by_reason(counts, labeled, SKIPPED)
        if bad >= count > 0:
            raise ValueError(
                f"nothing was learned: all {count} {_kind(labeled)} images of the run were left out "
                f"({reasons}), see {path}; correct the data set or its settings"
            )


def summary(path: Path) -> str | None:
    """Returns the list of a run in one line; None if there is no list.

    Counts an image once, even if it is listed in several passes.
    """
    known, counts = set[int](), Counter[tuple[bool, str, str]]()
    for _, issue in _lines(path):
        if (key := hash(issue)) not in known:  # 64 bits for each of perhaps a million names
            known.add(key)
            counts[issue.labeled, issue.action, issue.reason] += 1
    parts = list[str]()
    for labeled, action in ((True, SKIPPED), (False, SKIPPED), (False, CONVERTED)):
        total, reasons = _by_reason(counts, labeled, action)
        if total:
            parts.append(f"{total} {_kind(labeled)} images were {action} ({reasons})")
    return f"{'; '.join(parts)}: {path}" if parts else None


def _by_reason(counts: Counter[tuple[bool, str, str]], *wanted: bool | str) -> tuple[int, str]:
    """Returns the number of images of a kind (labeled, action), and the numbers by reason as text."""
    found = [(count, reason) for (*kind, reason), count in counts.items() if kind == list(wanted)]
    text = ", ".join(f"{count} {reason}" for count, reason in sorted(found, reverse=True))
    return sum(count for count, _ in found), text


def _kind(labeled: bool) -> str:
    return "labeled" if labeled else "unlabeled"


def _line(k: int, issue: ImageIssue) -> str:
    name = issue.name.replace("\t", " ").replace("\n", " ").replace("\r", " ")
    return f"{k}\t{_kind(issue.labeled)}\t{issue.action}\t{issue.reason}\t{name}\n"


def _lines(path: Path) -> Iterator[tuple[int, ImageIssue]]:
    """Yields micro-batch and issue of each line; ignores a last line that a kill left incomplete."""
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return
            k, *fields = line[:-1].split("\t")
            if len(fields) != 4 or not k.isdecimal() or fields[0] not in map(_kind, (True, False)):
                raise ValueError(f"{path}, line {number}: not a line of this list: move the file away")
            kind, action, reason, name = fields
            yield int(k), ImageIssue(action, reason, name, labeled=kind == _kind(True))


def _ends_within_a_line(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"
