"""Ctrl-C and SIGTERM: as exceptions, or as a request that a loop grants after its step."""

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
SLURM_SIGNALS = tuple(number for number in STOP_SIGNALS if number not in (signal.SIGINT, signal.SIGTERM))


class Terminated(KeyboardInterrupt):
    """SIGTERM or a similar signal arrived. It unwinds like Ctrl-C, so no half-written file stays behind."""


@contextmanager
def sigterm_raises(*more: int) -> Iterator[None]:
    """Raises `Terminated` on SIGTERM inside, and on the signals with the numbers `more`.

    Does nothing in other threads, which receive no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def unwind(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    before = {number: signal.signal(number, unwind) for number in (signal.SIGTERM, *more)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Yields a list to which the numbers of SIGINT, SIGTERM and SIGUSR1 are appended as they arrive.

    Slurm announces the end of a job by SIGUSR1. A second signal ends the process as usual, except below
    torchrun: it passes on signals that its processes have received already, and kills them itself if they do
    not end.
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
