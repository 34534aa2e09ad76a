"""Worker processes: how many there can be, and when they end."""

import multiprocessing
import os
import signal
import sys
import threading


def cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def end_with_parent() -> None:
    """Ignores Ctrl-C, which the parent handles, and ends this process when the parent ends or is killed.

    Call it first in a process of a pool. The pool's queue does not notice that the parent is gone, since the
    processes of the pool hold both ends of it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a fork inherits the handler of its parent
    watch_parent()


def watch_parent() -> None:
    """Ends this process when its parent ends, whatever it is doing then."""
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
