"""How far a prediction is."""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS_BETWEEN_LINES = 10.0


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


class Bar:
    """A progress bar; where there is no terminal, a line every 10 s.

    Args:
        description: of what is counted.
        total: how many there are, None where that is not known.
    """

    def __init__(self, description: str, total: int | None) -> None:
        console = Console()
        self._description, self._total, self._done = description, total, 0
        self._started = self._told = time.monotonic()
        self._prints = not console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.1f}/s"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            disable=self._prints,
        )
        self._task = self._progress.add_task(description, total=total, rate=0.0)

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        self._done += count
        now = time.monotonic()
        rate = self._done / max(now - self._started, 1e-6)
        self._progress.update(self._task, advance=count, rate=rate)
        if self._prints and now - self._told > SECONDS_BETWEEN_LINES:
            self._told = now
            print(f"{self._description}: {self._done}/{self._total or '?'}  {rate:.1f}/s", flush=True)

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._progress.stop()
