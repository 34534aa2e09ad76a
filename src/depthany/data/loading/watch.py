"""Loader processes under watch: one that dies or hangs ends the run with a message, and none is left over."""

import multiprocessing.process
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.sharedctypes import RawArray
from typing import Any

from torch.utils.data import get_worker_info
from torch.utils.data._utils import signal_handling

from depthany.data.batch import BadFile, Batch
from depthany.data.dataset import Read, TrainingSet
from depthany.system.processes import watch_parent

POLL_S = 1.0  # `timeout` of the DataLoader, whose waits are to be repeated until there is a fault
_TICK_S = 0.5  # between looks at the clock; a death wakes at once
_KILLED_S = 5.0  # for a process to end after SIGKILL; one that waits within the kernel may take longer
_HINTS = {signal.SIGKILL: ", perhaps because memory ran out", signal.SIGBUS: ", perhaps as /dev/shm is full"}


class ReadNotes:
    """What each loader process reads right now, in memory that it shares with the training process.

    Without a lock: a process writes its own numbers alone, and they are read when it has stood still for
    long.
    """

    def __init__(self, workers: int) -> None:
        self._numbers = RawArray("q", 3 * workers)  # what, index, begin in ns, of each
        self.workers = workers

    def write(self, worker: int, what: Read, index: int) -> None:
        """Loader process `worker` begins to read something, or is done (`Read.NOTHING`)."""
        self._numbers[3 * worker : 3 * worker + 3] = (what, index, time.monotonic_ns())

    def oldest(self) -> tuple[int, Read, int, float] | None:
        """Of all that is being read what began first: process, what, index, seconds since; None where
        nothing is.
        """
        rows = [(i, *self._numbers[3 * i : 3 * i + 3]) for i in range(self.workers)]
        busy = [row for row in rows if row[1] != Read.NOTHING]
        if not busy:
            return None
        worker, what, index, began = min(busy, key=lambda row: row[3])
        return worker, Read(what), index, (time.monotonic_ns() - began) / 1e9


def begin_loader(notes: ReadNotes, worker: int) -> None:
    """First thing in a loader process: it notes what it reads, and ends with the training process alone.

    Ctrl-C, `timeout` and Slurm signal every process of a run; a loader that died would spoil the save. And
    one that outlived a training process that was killed would hold the lock of its run directory.
    """
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    watch_parent()
    info = get_worker_info()
    assert info is not None
    assert isinstance(info.dataset, TrainingSet)  # this process's copy
    info.dataset.noting = partial(notes.write, worker)


@contextmanager
def deaths_raise_nothing() -> Iterator[None]:
    """Iterators of a `DataLoader` that are made inside set no signal handler that raises.

    PyTorch notices a process that died by SIGCHLD, and raises wherever the training happens to be, in the
    middle of a save for one. `Loaders` notices it too, and raises where a batch is wanted.
    """
    before = signal_handling._SIGCHLD_handler_set
    signal_handling._SIGCHLD_handler_set = True
    try:
        yield
    finally:
        signal_handling._SIGCHLD_handler_set = before


class Loaders:
    """The processes of a `DataLoader`'s iterator. A thread watches them, and `next` alone raises.

    Args:
        batches: iterator of a `DataLoader` with workers, made in `deaths_raise_nothing`, with
            `timeout=POLL_S`.
        dataset, notes: tell what is being read.
        timeout_s: longest wait for a batch in seconds; None = for ever.
    """

    def __init__(self, batches: Any, dataset: TrainingSet, notes: ReadNotes, timeout_s: float | None) -> None:
        self._batches, self._dataset, self._notes, self._timeout_s = batches, dataset, notes, timeout_s
        self._turn, self._ended, self._fault = 0, False, ""  # an odd turn: `next` waits
        signal_handling._remove_worker_pids(id(batches))  # for the handler of another DataLoader
        batches._worker_pids_set = False
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def next(self) -> Batch | BadFile | None:
        """The next item, None after the last.

        Raises:
            ValueError: a process was killed, or took too long.
        """
        self._turn += 1
        try:
            while True:
                try:
                    return next(self._batches, None)
                except Exception as error:
                    is_poll = str(error).startswith("DataLoader timed out")
                    if not is_poll:
                        # A process that is gone shows as a queue at its end, a connection that is refused or
                        # reset, or PyTorch's own error. The thread knows a moment later, unless the error is
                        # a defect of ours.
                        self._thread.join(2.0)
                    if self._fault:
                        message = f"{self._fault}; the same command continues from the last checkpoint"
                        raise ValueError(message) from error
                    if not is_poll:
                        raise
        finally:
            self._turn += 1

    def end(self) -> None:
        """End all processes, whatever they are doing; to be called once there is nothing more to read.

        They only read, so that nothing is lost by SIGKILL. PyTorch's own way waits for locks that a process
        may have died with, and then sends SIGTERM, which ours ignore.
        """
        self._ended = self._batches._shutdown = True
        self._end_pinning()
        self._kill()
        for process in self._batches._workers:
            process.join(_KILLED_S)
        for queue in self._batches._index_queues:
            queue.cancel_join_thread()
            queue.close()
        # Python's exit would wait for a process that does not end even so, as on a network disk that is gone.
        alive = [process for process in self._batches._workers if process.is_alive()]
        multiprocessing.process._children.difference_update(alive)  # type: ignore[attr-defined]

    def _end_pinning(self) -> None:
        if thread := getattr(self._batches, "_pin_memory_thread", None):
            self._batches._pin_memory_thread_done_event.set()
            self._batches._worker_result_queue.cancel_join_thread()
            self._batches._worker_result_queue.put((None, None))  # wakes it
            thread.join(2 * _KILLED_S)

    def _watch(self) -> None:
        sentinels = {process.sentinel: process for process in self._batches._workers}
        before, waited_s, last = 0, 0.0, time.monotonic()
        while sentinels and not self._fault and not self._ended:
            died = [sentinels.pop(each) for each in wait([*sentinels], timeout=_TICK_S)]
            turn, now = self._turn, time.monotonic()
            # Where this process was stopped itself (Ctrl-Z), the clock went on and nobody waited.
            step_s = min(now - last, 2 * _TICK_S)
            waited_s = waited_s + step_s if turn == before and turn % 2 else 0.0
            before, last = turn, now
            self._fault = next(filter(None, map(_death, died)), "")
            if self._timeout_s is not None and waited_s > self._timeout_s:
                self._fault = self._fault or self._hang(waited_s)
        if self._fault and not self._ended:
            self._kill()
            if not hasattr(self._batches, "_pin_memory_thread"):
                self._batches._worker_result_queue._writer.close()  # the other end of what `next` waits for

    def _hang(self, waited_s: float) -> str:
        reading, begin = self._notes.oldest(), f"no batch for {waited_s:.0f} s (data.read_timeout)"
        if reading is None:
            pids = ", ".join(str(process.pid) for process in self._batches._workers)
            return f"{begin}, and no loader process is reading a file: is one of them ({pids}) stopped?"
        worker, what, index, since_s = reading
        return (
            f"{begin}: loader process {self._batches._workers[worker].pid} has been at "
            f"{self._dataset.name_of(what, index)} for {since_s:.0f} s"
        )

    def _kill(self) -> None:
        for process in self._batches._workers:
            process.kill()


def _death(process: Any) -> str:
    """How a process died; empty where it came to its end."""
    process.join(_KILLED_S)
    until = time.monotonic() + _KILLED_S
    while process.exitcode is None and time.monotonic() < until:
        time.sleep(0.01)  # the training thread was first to ask the system, and has not noted the answer yet
    code = process.exitcode
    if code == 0:
        return ""
    if code is None or code > 0:
        return f"loader process {process.pid} ended with exit code {code}"
    number = signal.Signals(-code)
    return f"a loader process was killed by {number.name}{_HINTS.get(number, '')}"
