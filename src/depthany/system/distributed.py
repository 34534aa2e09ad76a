"""The processes of one run, as `torchrun` starts them. On a single process everything here does nothing.

Small values (counts, decisions, rows of results) are exchanged by gloo on the CPU, gradients by NCCL on GPUs.
"""

import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from depthany.system.launch import REMEDY, launched_ranks

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)  # longest wait for another process; longer than a validation or a save
_PATIENCE_S = 20.0  # after which a process says whom it waits for
_SILENCE_S = 8.0  # time in which process 0 starts, reports and ends; torchrun then ends the others at once


class LostContact(ValueError):
    """Another process of the run ended. That process reports the reason."""


@dataclass(frozen=True)
class Processes:
    """The rank of this process and the number of processes of the run.

    Attributes:
        rank: 0 to size - 1. Only process 0 writes files and prints.
        size: number of processes.
        local_rank: rank among the processes of this machine; also the index of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum(self, counts: Sequence[int]) -> list[int]:
        """Returns the sum of each count over the processes."""
        if self.size == 1:
            return list(counts)
        summed = torch.tensor(counts, dtype=torch.int64)
        dist.all_reduce(summed)
        return summed.tolist()

    def max(self, number: int) -> int:
        """Returns the largest number over the processes."""
        if self.size == 1:
            return number
        largest = torch.tensor(number, dtype=torch.int64)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def mean(self, values: Tensor) -> Tensor:
        """Returns the mean of `values`, of any shape, over the processes, without gradient."""
        if self.size == 1:
            return values.detach()
        mean = values.detach().clone().contiguous()
        dist.all_reduce(mean)
        return mean / self.size

    def gather(self, value: T) -> list[T]:
        """Returns the values of all processes in the order of their ranks; small ones that can be pickled."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered

    def from_main(self, value: T) -> T:
        """Returns the value of process 0, on every process; a small one that can be pickled."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, device=torch.device("cpu"))
        return values[0]

    def on_main(self, job: Callable[[], T]) -> T:
        """Calls `job` on process 0 and returns its result on every process; a small one that can be pickled.

        Raises:
            ValueError, OSError: `job` raised it; on every process.
        """
        outcome: tuple[T | None, Exception | None] = None, None
        if self.is_main:
            try:
                outcome = job(), None
            except (ValueError, OSError) as error:
                outcome = None, error
        result, failure = self.from_main(outcome)
        if failure is not None:
            raise failure
        return result  # type: ignore[return-value]

    def wait(self) -> None:
        """Waits until every process has called this (a barrier)."""
        self.sum([0])

    def wait_without_timeout(self, name: str) -> None:
        """Waits until every process has called this, even longer than `TIMEOUT`.

        A process that waits here notices only by torchrun's SIGTERM that another one failed, so SIGTERM must
        raise an exception.

        Args:
            name: name of this barrier, unique in a run.
        """
        if self.size == 1:
            return
        store, key = dist.distributed_c10d._get_default_store(), f"waits/{name}"
        store.add(key, 1)
        while store.add(key, 0) < self.size:
            time.sleep(0.05)


ALONE = Processes()


class SharedCount:
    """A count over all processes; threads may call it.

    Args:
        name: name of the count, unique in a run.
        report: called on process 0 with the increase since the last call, over all processes.
    """

    def __init__(self, processes: Processes, name: str, report: Callable[[int], object]) -> None:
        self._processes, self._key, self._report = processes, f"counts/{name}", report
        self._reported, self._lock = 0, threading.Lock()

    def add(self, count: int = 1) -> None:
        """Adds to the count. On process 0 a count of 0 reports what the others have added."""
        if self._processes.size == 1:
            self._report(count)
            return
        total = dist.distributed_c10d._get_default_store().add(self._key, count)
        if self._processes.is_main:
            with self._lock:
                increase, self._reported = max(0, total - self._reported), max(total, self._reported)
                self._report(increase)


def launched_processes() -> Processes:
    """Returns the processes that torchrun's environment variables describe; one process without them.

    Raises:
        ValueError: some of the variables are missing, or do not go together.
    """
    rank, size, local_rank = launched_ranks()
    return Processes(rank, size, local_rank) if size > 1 else ALONE


@contextmanager
def process_group(processes: Processes, device: torch.device) -> Iterator[Processes]:
    """Opens the process group, within which the methods of `Processes` work.

    Raises:
        LostContact: another process ended. Replaces the error that its absence caused.
    """
    if processes.size == 1:
        yield processes
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with default_signals(), _says_whom_it_waits_for(processes):
            dist.init_process_group(backend, timeout=TIMEOUT)
        yield processes
        processes.wait()  # another process may still need this one
    except SystemExit:  # every process leaves in this way after a signal
        dist.destroy_process_group()
        raise
    except RuntimeError as error:
        if not is_lost_contact(error):
            raise
        reason = str(error).split("\n", 1)[0].partition(". This is typically")[0]
        raise LostContact(
            f"process {processes.rank} of {processes.size} lost contact with another one ({reason})"
        ) from error
    dist.destroy_process_group()  # not after an error: it would wait for processes that have ended


@contextmanager
def _says_whom_it_waits_for(processes: Processes) -> Iterator[None]:
    """Prints a line if the other processes do not arrive: a variable of an earlier job may still be set."""
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    line = (
        f"process {processes.rank} waits for the others of WORLD_SIZE={processes.size} at {address}, for up "
        f"to {TIMEOUT}; if there are none: {REMEDY}"
    )
    timer = threading.Timer(_PATIENCE_S, print, (line,), {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def default_signals() -> Iterator[None]:
    """Lets SIGTERM and Ctrl-C end the process at once inside, where nothing can be lost.

    Opening the process group waits in C++, where Python runs no signal handler, and torchrun sends SIGTERM
    when another process has failed before it.
    """
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_lost_contact(error: RuntimeError) -> bool:
    """Whether gloo, NCCL or their store report a process that ended or does not answer."""
    words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


def should_report(error: BaseException) -> bool:
    """Whether this process prints its error; False where another process prints the same one.

    Before the process group is open, every process finds the same mistake in a command, and process 0 reports
    it. A process that has only lost contact waits first: torchrun ends it while the failed one reports.
    """
    try:
        processes = launched_processes()
    except ValueError:  # the error is about the environment
        return True
    if processes.size == 1:
        return True
    if isinstance(error, LostContact):
        time.sleep(_SILENCE_S / 4)
        return True
    if not dist.is_initialized():
        time.sleep(0.0 if processes.is_main else _SILENCE_S)
        return True
    key = hashlib.blake2b(str(error).encode(), digest_size=16).hexdigest()
    try:
        store = dist.distributed_c10d._get_default_store()
        return store.add(f"reported/{key}", 1) == 1
    except RuntimeError:  # the store has ended with its process
        return True


def full(tensor: Tensor) -> Tensor:
    """Returns the whole of a tensor that may be sharded. If it is, every process must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
