"""Ctrl-C and SIGTERM: exceptions that clean up on their way, or a wish that the loop grants in good time."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)


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
    """A list that gets the number of a SIGINT, SIGTERM or SIGUSR1, with which Slurm announces a job's end.

    The second of them ends the process as usual, except below torchrun, which passes on to its processes a
    signal that they have got already, and kills them itself if they do not end.
    """
    received: list[int] = []
    below_torchrun = "TORCHELASTIC_RUN_ID" in os.environ

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if not below_torchrun:
            for each in previous:
                signal.signal(each, signal.SIG_DFL)
        if len(received) == 1 and os.environ.get("RANK", "0") == "0":
            again = "" if below_torchrun else " (again to quit at once)"
            print(f"\nfinishing this step, then saving ...{again}", file=sys.stderr, flush=True)

    previous = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
