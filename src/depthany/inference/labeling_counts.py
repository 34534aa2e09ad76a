"""Counts of what the workers of pseudo-labeling have done."""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SUMMED = ("labels", "skipped", "constant", "shards", "teacher_s", "workers", "encoded", "encoded_bytes")


@dataclass
class LabelingCounts:
    """What one or several workers have labeled.

    Attributes:
        labels: images that were labeled. skipped: images that could not be read.
        constant: labels that are constant.
        shards: shards that were written.
        teacher_s: seconds in the teacher, summed over workers.
        workers: number of workers.
        encoded, encoded_bytes: labels that were encoded, and their size together.
        began: `time.monotonic()` at the start.
    """

    labels: int = 0
    skipped: int = 0
    constant: int = 0
    shards: int = 0
    teacher_s: float = 0.0
    workers: int = 1
    encoded: int = 0
    encoded_bytes: int = 0
    began: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add_encoded(self, size: int) -> None:
        """Counts an encoded label of `size` bytes; threads may call it."""
        with self._lock:
            self.encoded, self.encoded_bytes = self.encoded + 1, self.encoded_bytes + size

    def add_teacher_s(self, seconds: float) -> None:
        """Counts the time of a batch in the teacher; threads may call it."""
        with self._lock:
            self.teacher_s += seconds

    def bytes_per_label(self) -> float:
        """Returns the mean size of the labels so far."""
        return self.encoded_bytes / max(self.encoded, 1)

    def rate(self) -> float:
        """Returns labels per second since the start."""
        return self.labels / max(time.monotonic() - self.began, 1e-9)

    def projection(self, images: int) -> str:
        """Returns the space and time that `images` images take, at the rate and size so far."""
        minutes = images / max(self.rate(), 1e-9) / 60
        how_long = f"{minutes / 60:,.0f} hours" if minutes >= 120 else f"{max(minutes, 1):.0f} minutes"
        gigabytes = self.bytes_per_label() * images / 1e9
        return f"{images:,} images: about {gigabytes:,.3g} GB and {how_long} at this rate"

    def summable(self) -> dict[str, Any]:
        """Returns the counts that add up over workers, by name."""
        return {name: getattr(self, name) for name in SUMMED}

    def total(self, counts: Sequence[Mapping[str, Any]]) -> "LabelingCounts":
        """Returns the sum over workers that began when this one did.

        Args:
            counts: `summable` of every worker, including this one.
        """
        sums = {name: sum(each[name] for each in counts) for name in SUMMED}
        return LabelingCounts(**sums, began=self.began)
