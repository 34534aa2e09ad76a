"""What was wrong with unlabeled images: counted by reason, listed in a file, fatal beyond a share of them."""

import io
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from depthany.files import write_atomically

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


def inspect(stored: bytes | NDArray[np.uint8]) -> Header:
    """Look at the first bytes of an image file, or at an array [h w 3]; nothing is decoded.

    What cannot be read here is left to the decoder, which says what is wrong with it.
    """
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

    A line has four fields between tabs: micro-batch, action, reason, image.

    Args:
        path: the list; it comes to be with its first line.
        start: first micro-batch of this run; lines from there on were written after the checkpoint, and will
            be again.
        read: unlabeled images before `start`.
        max_share: largest share of images left out.
    """

    def __init__(self, path: Path, start: int, read: int, max_share: float) -> None:
        self.path, self.read, self.max_share = path, read, max_share
        self.counts = Counter[tuple[str, str]]()
        lines = list(_lines(path))
        kept = [line for line in lines if line[0] < start]
        self.counts.update((action, reason) for _, action, reason, _ in kept)
        if len(kept) < len(lines) or _ends_within_a_line(path):
            text = "".join(_line(*fields) for fields in kept)
            write_atomically(path, lambda partial: partial.write_text(text, "utf-8", "surrogateescape"))

    def add(self, k: int, notes: Iterable[Note], read: int) -> None:
        """Take up micro-batch `k` of `read` unlabeled images.

        Raises:
            ValueError: more images than `max_share` were left out so far.
        """
        self.read += read
        if lines := [_line(k, note.action, note.reason, note.name) for note in notes]:
            self.counts.update((note.action, note.reason) for note in notes)
            with open(self.path, "a", encoding="utf-8", errors="surrogateescape") as file:
                file.writelines(lines)
            self._require_few()

    def _require_few(self) -> None:
        bad = sum(count for (action, _), count in self.counts.items() if action == SKIPPED)
        if bad > self.max_share * max(self.read, _LEAST_COUNTED):
            raise ValueError(
                f"{bad} of {self.read} unlabeled images were left out, more than "
                f"data.max_unreadable_share={self.max_share:g} of them (or of the first {_LEAST_COUNTED}): "
                f"{_by_reason(self.counts, SKIPPED)}; they are listed in {self.path}"
            )


def summary(path: Path) -> str | None:
    """The list of a run in one line, an image that was met in several passes once; None without a list."""
    met, counts = set[int](), Counter[tuple[str, str]]()
    for _, action, reason, name in _lines(path):
        if (key := hash((action, reason, name))) not in met:  # 64 bits for each of perhaps a million names
            met.add(key)
            counts[action, reason] += 1
    said = [
        f"{total} {unlabeled} {action} ({_by_reason(counts, action)})"
        for action, unlabeled in (
            (SKIPPED, "unreadable unlabeled images were"),
            (CONVERTED, "unlabeled images were"),
        )
        if (total := sum(count for (done, _), count in counts.items() if done == action))
    ]
    return f"{'; '.join(said)}: {path}" if said else None


def _by_reason(counts: Counter[tuple[str, str]], wanted: str) -> str:
    found = [(count, reason) for (action, reason), count in counts.items() if action == wanted]
    return ", ".join(f"{count} {reason}" for count, reason in sorted(found, reverse=True))


def _line(k: int, action: str, reason: str, name: str) -> str:
    name = name.replace("\t", " ").replace("\n", " ").replace("\r", " ")
    return f"{k}\t{action}\t{reason}\t{name}\n"


def _lines(path: Path) -> Iterable[tuple[int, str, str, str]]:
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        for line in file:
            if line.endswith("\n"):  # the last one of a killed run may be half
                k, action, reason, name = line[:-1].split("\t")
                yield int(k), action, reason, name


def _ends_within_a_line(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"
