"""Watches the loader processes: if one dies or hangs, the run ends with a message and none is left over."""

import multiprocessing.process
import multiprocessing.queues
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.sharedctypes import RawArray
from typing import Any

from torch.utils.data import get_worker_info
from torch.utils.data._utils import signal_handling

from depthany.data.batch import BadFile, Batch
from depthany.data.dataset import FileKind, TrainingSet
from depthany.data.loading.room import REMEDY, SHARED_MEMORY, is_full
from depthany.system.plugins import load_plugins
from depthany.system.processes import watch_parent

POLL_S = 1.0  # `timeout` of the DataLoader; a wait is repeated until there is a batch or a fault
_TICK_S = 0.5  # between looks at the clock; a death wakes the thread at once
_KILLED_S = 5.0  # longest wait for the end of a killed process; one in the kernel may take longer
_FOUND_NO_ROOM = 73  # exit code of a loader process that cannot send its batch (EX_CANTCREAT)
_FULL = f"shared memory ({SHARED_MEMORY}) is full: {REMEDY}"
_HINTS = {signal.SIGKILL: ", perhaps because memory ran out", signal.SIGBUS: f", perhaps because {_FULL}"}


class CurrentReads:
    """What each loader process reads at the moment, in memory shared with the training process.

    There is no lock: each process writes only its own numbers, and they are read only after a process has
    stood still for long.
    """

    def __init__(self, workers: int) -> None:
        self._numbers = RawArray("q", 3 * workers)  # kind, index and begin in ns of each process
        self.workers = workers

    def write(self, worker: int, kind: FileKind, index: int) -> None:
        """Notes that loader process `worker` begins to read a file, or has ended (`FileKind.NOTHING`)."""
        self._numbers[3 * worker : 3 * worker + 3] = (kind, index, time.monotonic_ns())

    def oldest(self) -> tuple[int, FileKind, int, float] | None:
        """Returns the read that began first, as process, kind, index and seconds since; None if there is
        none.
        """
        rows = [(i, *self._numbers[3 * i : 3 * i + 3]) for i in range(self.workers)]
        busy = [row for row in rows if row[1] != FileKind.NOTHING]
        if not busy:
            return None
        worker, kind, index, began = min(busy, key=lambda row: row[3])
        return worker, FileKind(kind), index, (time.monotonic_ns() - began) / 1e9


def init_worker(reads: CurrentReads, plugins: Sequence[str], worker: int) -> None:
    """Initialises a loader process: it notes its reads in `reads`, and ends only with the training process.

    It imports the plug-ins of the training process too, since a spawned process starts without them.

    Ctrl-C, `timeout` and Slurm send their signal to every process of a run, and a loader process that died of
    it would spoil the save. One that outlived a killed training process would keep the lock of the run
    directory.
    """
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    watch_parent()
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(end_process)  # type: ignore[attr-defined]
    load_plugins(plugins)
    info = get_worker_info()
    assert info is not None
    assert isinstance(info.dataset, TrainingSet)  # the copy of this process
    info.dataset.on_read = partial(reads.write, worker)


def end_process(error: BaseException, _batch: object) -> None:
    """Ends a loader process that cannot send a batch. Python's own way drops it, and the run waits for it."""
    if not is_full(error):
        traceback.print_exception(error)
    os._exit(_FOUND_NO_ROOM if is_full(error) else 1)


@contextmanager
def without_sigchld_handler() -> Iterator[None]:
    """DataLoader iterators that are made inside do not install PyTorch's handler of SIGCHLD.

    That handler raises when a worker dies, wherever the training happens to be, even in the middle of a save.
    `WatchedWorkers` notices the death too, and raises only where a batch is wanted.
    """
    before = signal_handling._SIGCHLD_handler_set
    signal_handling._SIGCHLD_handler_set = True
    try:
        yield
    finally:
        signal_handling._SIGCHLD_handler_set = before


class WatchedWorkers:
    """The worker processes of a DataLoader iterator. A thread watches them; only `next` raises.

    Args:
        batches: iterator of a DataLoader that has workers and `timeout=POLL_S`, made inside
            `without_sigchld_handler`.
        dataset, reads: for the name of the file that hangs.
        timeout_s: longest wait for a batch in seconds; None = for ever.
    """

    def __init__(
        self, batches: Any, dataset: TrainingSet, reads: CurrentReads, timeout_s: float | None
    ) -> None:
        self._batches, self._dataset, self._reads, self._timeout_s = batches, dataset, reads, timeout_s
        self._turn, self._ended, self._fault = 0, False, ""  # an odd turn: `next` waits
        signal_handling._remove_worker_pids(id(batches))  # another DataLoader may have installed the handler
        batches._worker_pids_set = False
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def next(self) -> Batch | BadFile | None:
        """Returns the next item; None after the last.

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
                        # A dead process shows as the end of a queue, a refused or reset connection, or
                        # PyTorch's own error. The thread knows a moment later, unless the error is a defect
                        # of ours.
                        self._thread.join(2.0)
                    if self._fault:
                        message = f"{self._fault}; the same command continues from the last checkpoint"
                        raise ValueError(message) from error
                    if not is_poll:
                        raise
        finally:
            self._turn += 1

    def end(self) -> None:
        """Ends all processes, whatever they are doing. Call it when nothing more will be read.

        The processes only read, so SIGKILL loses nothing. PyTorch's own way waits for locks that a dead
        process may hold, and then sends SIGTERM, which ours ignore.
        """
        self._ended = self._batches._shutdown = True
        self._end_pinning()
        self._kill()
        for process in self._batches._workers:
            process.join(_KILLED_S)
        for queue in self._batches._index_queues:
            queue.cancel_join_thread()
            queue.close()
        # At exit Python would wait for a process that even SIGKILL does not end, as on a dead network disk.
        alive = [process for process in self._batches._workers if process.is_alive()]
        multiprocessing.process._children.difference_update(alive)  # type: ignore[attr-defined]

    def _end_pinning(self) -> None:
        if thread := getattr(self._batches, "_pin_memory_thread", None):
            self._batches._pin_memory_thread_done_event.set()
            self._batches._worker_result_queue.cancel_join_thread()
            self._batches._worker_result_queue.put((None, None))  # wakes it
            thread.join(2 * _KILLED_S)

    def _watch(self) -> None:
        """Waits in a thread for a death or a hang, notes it in `_fault`, and ends the processes."""
        sentinels = {process.sentinel: process for process in self._batches._workers}
        before, waited_s, last = 0, 0.0, time.monotonic()
        while sentinels and not self._fault and not self._ended:
            died = [sentinels.pop(sentinel) for sentinel in wait([*sentinels], timeout=_TICK_S)]
            turn, now = self._turn, time.monotonic()
            # If this process itself was stopped (Ctrl-Z), the clock went on though nobody waited.
            step_s = min(now - last, 2 * _TICK_S)
            waited_s = waited_s + step_s if turn == before and turn % 2 else 0.0
            before, last = turn, now
            self._fault = next(filter(None, map(_death, died)), "")
            if self._timeout_s is not None and waited_s > self._timeout_s:
                self._fault = self._fault or self._hang(waited_s)
        if self._fault and not self._ended:
            self._kill()
            if not hasattr(self._batches, "_pin_memory_thread"):
                self._batches._worker_result_queue._writer.close()  # wakes `next` at the other end

    def _hang(self, waited_s: float) -> str:
        """Returns a message that names the file at which a process hangs."""
        reading, begin = self._reads.oldest(), f"no batch for {waited_s:.0f} s (data.read_timeout)"
        if reading is None:
            pids = ", ".join(str(process.pid) for process in self._batches._workers)
            return f"{begin}, but no loader process is reading a file: is one of them ({pids}) stopped?"
        worker, kind, index, since_s = reading
        return (
            f"{begin}: loader process {self._batches._workers[worker].pid} has been at "
            f"{self._dataset.name_of(kind, index)} for {since_s:.0f} s"
        )

    def _kill(self) -> None:
        for process in self._batches._workers:
            process.kill()


def _death(process: Any) -> str:
    """Returns how a process died; an empty string if it ended normally."""
    process.join(_KILLED_S)
    until = time.monotonic() + _KILLED_S
    while process.exitcode is None and time.monotonic() < until:
        time.sleep(0.01)  # the training thread asked the system first, and has not stored the answer yet
    code = process.exitcode
    if code == 0:
        return ""
    if code == _FOUND_NO_ROOM:
        return _FULL
    if code is None or code > 0:
        return f"loader process {process.pid} ended with exit code {code}"
    number = signal.Signals(-code)
    return f"a loader process was killed by {number.name}{_HINTS.get(number, '')}"
