"""Ctrl-C and SIGTERM: exceptions that clean up on their way, or a wish that the loop grants in good time."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: unwind as after Ctrl-C, so that no half file stays behind."""


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """SIGTERM raises `Terminated` inside, where this is the main thread, which alone hears of signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def unwind(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that gets the number of a SIGINT or SIGTERM; the second of them ends the process as usual."""
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        for each in previous:
            signal.signal(each, signal.SIG_DFL)
        print("\nfinishing this step, then saving ... (again to quit at once)", file=sys.stderr, flush=True)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
