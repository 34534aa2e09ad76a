"""Processes that read images in parallel. Their findings come back in the order of the images."""

import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2

from depthany.checking.inspect import Finding, Inspector
from depthany.checking.sheet import draw_sheet
from depthany.data.histogram import PackedHistogram
from depthany.system.processes import end_with_parent

CHUNK = 16  # images that a process takes at a time

# A forked process has the opened data sets and all modules at once. A spawned one must import and list them
# again, but fork is only safe on Linux.
START_METHOD = "fork" if sys.platform == "linux" else "spawn"


@dataclass(frozen=True)
class Chunk:
    """The findings of some images, in their order, and histograms of their depth.

    depth: histogram of the valid values. outside: that of the known values out of the set's range.
    """

    indices: Sequence[int]
    findings: list[Finding]
    depth: PackedHistogram
    outside: PackedHistogram


class Readers:
    """A pool of processes that read data sets. Leaving the `with` block ends them after the current image.

    Args:
        sets: data sets by name.
        workers: number of processes; the findings do not depend on it.
        convert_images, min_valid_share, min_side: see `Inspector`.
    """

    def __init__(
        self,
        sets: Mapping[str, Any],
        workers: int,
        convert_images: bool,
        min_valid_share: float,
        min_side: int = 1,
    ) -> None:
        context = multiprocessing.get_context(START_METHOD)
        self._sets, self._workers = sets, workers
        self._stop = context.Event()
        self._sheets = list[tuple[str, Future[None]]]()
        self._pool = ProcessPoolExecutor(
            workers, context, _begin, (dict(sets), (convert_images, min_valid_share, min_side), self._stop)
        )

    def check(self, name: str, indices: Sequence[int]) -> Iterator[Chunk]:
        """Yields the findings of the images `indices` of a data set, in their order.

        Raises:
            ValueError: a process was killed.
        """
        starts, pending = iter(range(0, len(indices), CHUNK)), deque[tuple[Sequence[int], Future[Chunk]]]()
        at = indices[0] if len(indices) else 0
        try:
            while True:
                while len(pending) < 4 * self._workers and (start := next(starts, None)) is not None:
                    part = indices[start : start + CHUNK]
                    pending.append((part, self._pool.submit(_inspect, name, part)))
                if not pending:
                    return
                part, future = pending.popleft()
                at = part[0]
                yield future.result()
        except BrokenProcessPool:
            raise _killed(f"{name} was read, at or after {self._sets[name].name(at)}") from None

    def draw(self, name: str, indices: Sequence[int], path: Path, title: str) -> None:
        """Begins to write the contact sheet of a data set to `path`; `finish_sheets` waits for it."""
        try:
            self._sheets.append((name, self._pool.submit(_draw, name, indices, path, title)))
        except BrokenProcessPool:
            raise _killed(f"the contact sheet of {name} was begun") from None

    def finish_sheets(self) -> None:
        """Waits for all contact sheets. Raises ValueError if one cannot be written."""
        for name, sheet in self._sheets:
            try:
                sheet.result()
            except BrokenProcessPool:
                raise _killed(f"the contact sheet of {name} was drawn") from None

    def __enter__(self) -> "Readers":
        # Fork all processes now: later a progress bar has a thread that prints, and fork would copy its
        # locks.
        self._pool.submit(os.getpid).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)


def _killed(when: str) -> ValueError:
    return ValueError(
        f"a checking process was killed, perhaps because memory ran out, while {when}: try workers=1"
    )


_inspectors: dict[str, Inspector] = {}
_stopped: Event | None = None


def _begin(sets: dict[str, Any], options: tuple[bool, float, int], stop: Event) -> None:
    """Initialises a process of the pool; `options` are the further arguments of `Inspector`."""
    global _stopped
    end_with_parent()
    cv2.setNumThreads(1)
    _stopped = stop
    for name, dataset in sets.items():
        _inspectors[name] = Inspector(dataset, *options)


def _inspect(name: str, indices: Sequence[int]) -> Chunk:
    inspector, findings = _inspectors[name], list[Finding]()
    inspector.restart()
    assert _stopped is not None
    for index in indices:
        if _stopped.is_set():
            break
        findings.append(inspector.inspect(int(index)))
    return Chunk(indices[: len(findings)], findings, inspector.histogram.packed(), inspector.outside.packed())


def _draw(name: str, indices: Sequence[int], path: Path, title: str) -> None:
    inspector = _inspectors[name]
    draw_sheet(inspector.dataset, indices, path, title, inspector.convert_images)
