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
from depthany.inference.output_settings import OutputSettings
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
        beyond: names of photos and frames with metres that do not fit into a 16-bit PNG.
        beyond_pixels: how many such pixels they have.
        beyond_words: what happens to them, for the message.
        pointless: names of photos whose point cloud has no point.
        passed_over: by suffix, files that look like images or other media and are not predicted.
    """

    done: list[Path] = field(default_factory=list)
    existing: list[Path] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    maps: int = 0
    constant: list[str] = field(default_factory=list)
    beyond: list[str] = field(default_factory=list)
    beyond_pixels: int = 0
    beyond_words: str = ""
    pointless: list[str] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    _lock: Lock = field(default_factory=Lock)

    def add_map(self, name: str, values: NDArray[np.float32]) -> None:
        """Counts a photo or frame with the prediction `values` [h w]."""
        constant = is_constant(values)
        with self._lock:
            self.maps += 1
            if constant:
                self.constant.append(name)

    def add_png16(self, name: str, values: NDArray[np.float32], settings: OutputSettings) -> None:
        """Counts those of the metres `values` [h w] of a photo or frame that its 16-bit PNG cannot hold."""
        if pixels := settings.beyond_16bit(values):
            end = f"{settings.largest_16bit_m:g} m"
            with self._lock:
                self.beyond.append(name)
                self.beyond_pixels += pixels
                self.beyond_words = (
                    f"beyond {end}, the largest 16-bit number of {settings.unit_of_16bit}, and stored as "
                    f"{end}: png16_per_metre=256 holds up to 255.996 m, save=npy any depth"
                )

    def add_cloud(self, name: str, values: NDArray[np.float32], settings: OutputSettings) -> None:
        """Counts a photo whose prediction `values` [h w] has no pixel that is a point of its cloud."""
        if not np.isfinite(settings.depth_m(values)).any():
            with self._lock:
                self.pointless.append(name)

    def report(self, out: Path) -> None:
        """Prints the counts, and to stderr what could not be read."""
        parts = [f"{len(self.done)} predicted"]
        if self.existing:
            parts.append(f"{len(self.existing)} there already (overwrite=true predicts them again)")
        if self.unreadable:
            parts.append(f"{len(self.unreadable)} unreadable")
        if self.passed_over:
            parts.append(describe_passed_over(self.passed_over))
        print(f"{out}: {', '.join(parts)}", flush=True)
        for line in self.unreadable:
            print(f"error: {line}", file=sys.stderr)
        if self.beyond:
            maps = f"{len(self.beyond)} maps ({_first(self.beyond)})"
            print(f"warning: {self.beyond_pixels} pixels of {maps} are {self.beyond_words}", file=sys.stderr)
        if self.pointless:
            print(
                f"warning: {len(self.pointless)} point cloud(s) ({_first(self.pointless)}) are empty: no "
                "predicted depth is above 0 and within near_m and far_m",
                file=sys.stderr,
            )
        if self.constant:
            print(f"warning: {constant_maps(self.constant, self.maps)}", file=sys.stderr)


def _first(names: list[str]) -> str:
    """Returns the first names for a message."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
