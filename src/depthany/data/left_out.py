"""What was wrong with images: counted by reason, listed in a file, fatal beyond a share of them."""

import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from depthany.system.files import write_atomically

SKIPPED, CONVERTED = "left out", "converted"
_LEAST_COUNTED = 200  # the share is taken of at least so many images: the first bad file ends no run
_MODES = {  # Pillow's name of what an image holds -> ours, for those that are turned into 8-bit RGB
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
class Note:
    """An image that is not used as it is.

    action: SKIPPED or CONVERTED.
    reason: a few words that many images share, by which they are counted.
    name: of the image, or the message that begins with it.
    """

    action: str
    reason: str
    name: str
    labeled: bool


@dataclass(frozen=True)
class Header:
    """What the first bytes of an image say; all empty where they could not be read.

    side: the smaller one, in pixels.
    colours: what is not 8-bit RGB, in words; empty for 8-bit RGB.
    animated: it has several frames, of which the first is taken.
    """

    side: int | None = None
    colours: str = ""
    animated: bool = False
    empty: bool = False

    def fault(self, min_side: int, convert: bool) -> str:
        """Why the image could not be used, now that it is known that it could not."""
        if self.side is not None and self.side < min_side:
            return f"below {min_side} pixels"
        if self.colours and not convert:
            return f"{self.colours} without data.convert_images"
        return "empty" if self.empty else "damaged or missing"

    @property
    def conversion(self) -> str:
        """What is changed in it when it is read; empty if nothing is."""
        return "animated" if self.animated else self.colours

    def require_side(self, min_side: int, name: str) -> None:
        """Raise a `ValueError` that names an image whose smaller side is below `min_side` pixels."""
        if self.side is not None and self.side < min_side:
            raise ValueError(f"{name}: its smaller side has {self.side} pixels, data.min_side is {min_side}")


def inspect(stored: bytes | NDArray[np.uint8] | None) -> Header:
    """Look at the first bytes of an image file, or at an array [h w 3]; nothing is decoded.

    What cannot be read here, or at all (None), is left to the decoder, which says what is wrong with it.
    """
    if stored is None:
        return Header()
    if not isinstance(stored, bytes):
        return Header(side=min(stored.shape[:2]))
    try:
        with Image.open(io.BytesIO(stored)) as file:
            mode, side, animated = file.mode, min(file.size), _is_animated(file)
    except Exception:  # whatever a damaged file leads Pillow's parsers to
        return Header(empty=not stored)
    colours = "16-bit gray" if mode.startswith("I;16") else _MODES.get(mode, mode)
    return Header(side, "" if mode == "RGB" else colours, animated)


def _is_animated(file: Any) -> bool:
    """Several frames; the second picture in an MPO file of a camera is a preview or the other eye's view."""
    return file.format != "MPO" and bool(getattr(file, "is_animated", False))


class ImageReport:
    """The list of a run, which a resumed run continues where its checkpoint stands.

    A line has five fields between tabs: micro-batch, labeled or unlabeled, action, reason, image.

    Args:
        path: the list; it comes to be with its first line.
        start: first micro-batch of this run; lines from there on were written after the checkpoint, and will
            be again.
        max_share: largest share of images left out, of the labeled and of the unlabeled ones.

    Raises:
        ValueError: the file holds something else.
    """

    def __init__(self, path: Path, start: int, max_share: float) -> None:
        self.path, self.max_share = path, max_share
        lines = list(_lines(path))
        kept = [(k, note) for k, note in lines if k < start]
        self.counts = Counter((note.labeled, note.action, note.reason) for _, note in kept)
        if len(kept) < len(lines) or _ends_within_a_line(path):
            text = "".join(_line(k, note) for k, note in kept)
            write_atomically(path, lambda partial: partial.write_text(text, "utf-8", "surrogateescape"))

    def add(self, k: int, notes: Sequence[Note], read: tuple[int, int]) -> None:
        """Take up micro-batch `k`, with which so many labeled and unlabeled images were `read` in all.

        Raises:
            ValueError: more images than `max_share` were left out so far.
        """
        if notes:
            self.counts.update((note.labeled, note.action, note.reason) for note in notes)
            with open(self.path, "a", encoding="utf-8", errors="surrogateescape") as file:
                file.writelines(_line(k, note) for note in notes)
            for labeled, count in zip((True, False), read):
                self._require_few(labeled, count)

    def _require_few(self, labeled: bool, read: int) -> None:
        bad, reasons = _by_reason(self.counts, labeled, SKIPPED)
        if bad > self.max_share * max(read, _LEAST_COUNTED):
            raise ValueError(
                f"{bad} of {read} {_kind(labeled)} images were left out, more than "
                f"data.max_unreadable_share={self.max_share:g} of them (or of the first {_LEAST_COUNTED}): "
                f"{reasons}; they are listed in {self.path}"
            )


def summary(path: Path) -> str | None:
    """The list of a run in one line, an image that was met in several passes once; None without a list."""
    met, counts = set[int](), Counter[tuple[bool, str, str]]()
    for _, note in _lines(path):
        if (key := hash(note)) not in met:  # 64 bits for each of perhaps a million names
            met.add(key)
            counts[note.labeled, note.action, note.reason] += 1
    said = list[str]()
    for labeled, action in ((True, SKIPPED), (False, SKIPPED), (False, CONVERTED)):
        total, reasons = _by_reason(counts, labeled, action)
        if total:
            said.append(f"{total} {_kind(labeled)} images were {action} ({reasons})")
    return f"{'; '.join(said)}: {path}" if said else None


def _by_reason(counts: Counter[tuple[bool, str, str]], *wanted: bool | str) -> tuple[int, str]:
    """How many images of a kind (labeled or not, action) there are, and how many for each reason."""
    found = [(count, reason) for (*kind, reason), count in counts.items() if kind == list(wanted)]
    told = ", ".join(f"{count} {reason}" for count, reason in sorted(found, reverse=True))
    return sum(count for count, _ in found), told


def _kind(labeled: bool) -> str:
    return "labeled" if labeled else "unlabeled"


def _line(k: int, note: Note) -> str:
    name = note.name.replace("\t", " ").replace("\n", " ").replace("\r", " ")
    return f"{k}\t{_kind(note.labeled)}\t{note.action}\t{note.reason}\t{name}\n"


def _lines(path: Path) -> Iterator[tuple[int, Note]]:
    """Micro-batch and note of each line."""
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):  # the last one of a killed run may be half
                return
            k, *fields = line[:-1].split("\t")
            if len(fields) != 4 or not k.isdecimal() or fields[0] not in map(_kind, (True, False)):
                raise ValueError(f"{path}, line {number}: not a line of this list: move the file away")
            kind, action, reason, name = fields
            yield int(k), Note(action, reason, name, labeled=kind == _kind(True))


def _ends_within_a_line(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"
