"""Counts of what became of photos and videos."""

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from depthany.data.image_formats import describe_passed_over
from depthany.inference.constant_maps import constant_maps
from depthany.metrics.constant import is_constant


@dataclass
class PredictionCounts:
    """What became of the photos and videos of a prediction; threads may append.

    Attributes:
        done: files that were predicted.
        existing: files that were left alone, because all of their results exist.
        unreadable: one line per file that could not be read.
        maps: how many photos and frames were predicted.
        constant: names of those whose prediction is constant.
        passed_over: by suffix, files that look like images or other media and are not predicted.
    """

    done: list[Path] = field(default_factory=list)
    existing: list[Path] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    maps: int = 0
    constant: list[str] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    _lock: Lock = field(default_factory=Lock)

    def add_map(self, name: str, values: NDArray[np.float32]) -> None:
        """Counts the prediction [h w] of a photo or frame."""
        constant = is_constant(values)
        with self._lock:
            self.maps += 1
            if constant:
                self.constant.append(name)

    def report(self, out: Path) -> None:
        """Prints the counts, and to stderr what could not be read."""
        parts = [f"{len(self.done)} predicted"]
        if self.existing:
            parts.append(f"{len(self.existing)} there already (overwrite=true predicts them anew)")
        if self.unreadable:
            parts.append(f"{len(self.unreadable)} unreadable")
        if self.passed_over:
            parts.append(describe_passed_over(self.passed_over))
        print(f"{out}: {', '.join(parts)}", flush=True)
        for line in self.unreadable:
            print(f"error: {line}", file=sys.stderr)
        if self.constant:
            print(f"warning: {constant_maps(self.constant, self.maps)}", file=sys.stderr)
