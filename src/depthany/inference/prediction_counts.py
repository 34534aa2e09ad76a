"""Counts of what became of photos and videos."""

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from depthany.data.image_formats import describe_passed_over


@dataclass
class PredictionCounts:
    """What became of the photos and videos of a prediction; threads may append.

    Attributes:
        done: files that were predicted.
        existing: files that were left alone, because all of their results exist.
        unreadable: one line per file that could not be read.
        passed_over: by suffix, files that look like images or other media and are not predicted.
    """

    done: list[Path] = field(default_factory=list)
    existing: list[Path] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)

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
