"""What became of the sources of a prediction."""

import sys
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Tally:
    """What became of the sources; threads may append."""

    done: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)  # all of their results are there already
    unreadable: list[str] = field(default_factory=list)  # a line for each, which names it

    def report(self, out: Path) -> None:
        """Print how many of each there are, and to stderr what could not be read."""
        parts = [f"{len(self.done)} predicted"]
        if self.skipped:
            parts.append(f"{len(self.skipped)} there already (overwrite=true predicts them anew)")
        if self.unreadable:
            parts.append(f"{len(self.unreadable)} unreadable")
        print(f"{out}: {', '.join(parts)}", flush=True)
        for line in self.unreadable:
            print(f"error: {line}", file=sys.stderr)
