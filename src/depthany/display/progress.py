"""The progress bar of all commands."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from depthany.system.distributed import Processes, SharedCount
from depthany.system.plurals import counted

SECONDS_BETWEEN_LINES = 10.0


def columns(numbers: str) -> tuple[ProgressColumn, ...]:
    """Returns the columns of a `rich` bar: description, count, numbers, time and ETA.

    Args:
        numbers: format of what else it shows, such as "{task.fields[rate]:.1f}/s".
    """
    return (
        TextColumn("{task.description}", markup=False),  # names of files may look like markup
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn(numbers),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )


def clock(seconds: float) -> str:
    """Returns a time such as 1:05, from an hour on 2:00:05, and from a day on "3 days 2:00:05"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if not hours:
        return f"{minute}:{second:02d}"
    return f"{counted(days, 'day')} " * bool(days) + f"{hour}:{minute:02d}:{second:02d}"


def time_in_words(seconds: float) -> str:
    """Returns a time with its unit, such as "1:05 minutes" or "2:00:05 hours"."""
    return clock(seconds) + (" minutes" if round(seconds) < 3600 else " hours")


class Bar:
    """A progress bar; without a terminal it prints a line every 10 s.

    Args:
        description: what is counted.
        total: how many there are, None if that is not known.
    """

    def __init__(self, description: str, total: int | None) -> None:
        console = Console()
        self._description, self._total, self._done = description, total, 0
        self._started = self._printed = time.monotonic()
        self._prints = not console.is_terminal
        self._progress = Progress(
            *columns("{task.fields[rate]:.1f}/s"), console=console, disable=self._prints
        )
        self._task = self._progress.add_task(description, total=total, rate=0.0)

    def advance(self, count: int = 1) -> None:
        """Adds to the count of what is done."""
        self._done += count
        now = time.monotonic()
        rate = self._done / max(now - self._started, 1e-6)
        self._progress.update(self._task, advance=count, rate=rate)
        if self._prints and now - self._printed > SECONDS_BETWEEN_LINES:
            self._printed = now
            eta = f"  ETA {clock((self._total - self._done) / rate)}" if self._total and rate else ""
            print(
                f"{self._description}: {self._done}/{self._total or '?'}  {rate:.1f}/s{eta}",
                flush=True,
            )

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._progress.stop()


@contextmanager
def bar_of_all(processes: Processes, description: str, total: int) -> Iterator[Callable[..., None]]:
    """Yields a function that counts what all processes have done on one bar, shown by process 0.

    Every process calls the function with the number of items that it has done since, by default 1.

    Args:
        processes: processes that share the work.
        description: what is counted; unique in a run.
        total: how many there are in all processes.
    """
    with Bar(description, total) if processes.is_main else nullcontext() as bar:
        yield SharedCount(processes, description, bar.advance if bar is not None else lambda count: None).add
