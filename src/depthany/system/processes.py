"""Processes that work for another one: how many, and when they end."""

import multiprocessing
import os
import signal
import sys
import threading


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def end_with_parent() -> None:
    """Leave Ctrl-C, which reaches all, to the parent, and end right after it, even where it was killed.

    To be called first in a process of a pool: its own queue would not tell of a parent that is gone, since
    the processes of the pool hold both ends of it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # and not the handler that a fork takes over
    watch_parent()


def watch_parent() -> None:
    """Let this process end right after its parent, whatever it is doing then."""
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
