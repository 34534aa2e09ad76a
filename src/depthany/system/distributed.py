"""Processes that work on one run together, as `torchrun` starts them; on one process all here is a no-op.

Small things (counts, decisions, rows of results) go through gloo on the CPU, gradients through NCCL on GPUs.
"""

import hashlib
import os
import signal
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

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)  # that one process waits for the others; a validation or a save fits in
_SILENCE_S = 8.0  # for process 0 to start, speak and end; torchrun then ends the others at once


class LostContact(ValueError):
    """Another process of the run is gone; what happened to it is for that one to tell."""


@dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    rank: 0 to size - 1; process 0 alone writes and prints. local_rank: its number on this machine, which is
        that of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def sum(self, counts: Sequence[int]) -> list[int]:
        """The sum over the processes of each count."""
        if self.size == 1:
            return list(counts)
        summed = torch.tensor(counts, dtype=torch.int64)
        dist.all_reduce(summed)
        return summed.tolist()

    def max(self, number: int) -> int:
        """The largest that any process has."""
        if self.size == 1:
            return number
        largest = torch.tensor(number, dtype=torch.int64)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes of a tensor [...], on its device; no gradient flows through it."""
        if self.size == 1:
            return values.detach()
        mean = values.detach().clone().contiguous()
        dist.all_reduce(mean)
        return mean / self.size

    def gather(self, value: T) -> list[T]:
        """What each process has, in the order of the ranks, on all of them; picklable and small."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered

    def from_main(self, value: T) -> T:
        """What process 0 has, on all of them; picklable and small."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, device=torch.device("cpu"))
        return values[0]

    def wait(self) -> None:
        """Until all have come here."""
        self.sum([0])

    def wait_however_long(self, name: str) -> None:
        """Until all have come here, past `TIMEOUT`: for an entry in which SIGTERM raises, since whoever waits
        here learns of another's end from torchrun alone.

        Args:
            name: of this place, once in a run.
        """
        if self.size == 1:
            return
        store, key = dist.distributed_c10d._get_default_store(), f"waits/{name}"
        store.add(key, 1)
        while store.add(key, 0) < self.size:
            time.sleep(0.05)


ALONE = Processes()


class CountOfAll:
    """How much all processes have done; threads may call it.

    Args:
        name: of what is counted, once in a run.
        tell: called on process 0 with how many more are done, by itself and the others.
    """

    def __init__(self, processes: Processes, name: str, tell: Callable[[int], object]) -> None:
        self._processes, self._key, self._tell = processes, f"counts/{name}", tell
        self._told, self._lock = 0, threading.Lock()

    def add(self, count: int = 1) -> None:
        """So many more are done here; process 0 hears of the others when it calls this, with 0 too."""
        if self._processes.size == 1:
            self._tell(count)
            return
        done = dist.distributed_c10d._get_default_store().add(self._key, count)
        if self._processes.is_main:
            with self._lock:
                new, self._told = max(0, done - self._told), max(done, self._told)
                self._tell(new)


def launched() -> Processes:
    """What torchrun says in the environment; one process without it.

    Raises:
        ValueError: the environment says half of it.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    given = {name: os.environ[name] for name in names if name in os.environ}
    if "WORLD_SIZE" not in given or given["WORLD_SIZE"] == "1":
        return ALONE
    if missing := [name for name in names if name not in given]:
        raise ValueError(f"WORLD_SIZE is set without {', '.join(missing)}: start with torchrun")
    return Processes(*(int(given[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))


@contextmanager
def process_group(processes: Processes, device: torch.device) -> Iterator[Processes]:
    """Meet the other processes; inside, the methods of `Processes` work.

    Raises:
        LostContact: another process is gone, in place of whatever its absence led to.
    """
    if processes.size == 1:
        yield processes
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with ends_at_sigterm():
            dist.init_process_group(backend, timeout=TIMEOUT)
        yield processes
        processes.wait()  # nobody leaves while another may still need it
    except SystemExit:  # all leave alike, after a signal
        dist.destroy_process_group()
        raise
    except RuntimeError as error:
        if not is_lost_contact(error):
            raise
        reason = str(error).split("\n", 1)[0].partition(". This is typically")[0]
        raise LostContact(
            f"process {processes.rank} of {processes.size} lost contact with another one ({reason})"
        ) from error
    dist.destroy_process_group()  # not after an error: it would wait for those that are gone


@contextmanager
def ends_at_sigterm() -> Iterator[None]:
    """SIGTERM ends the process at once inside, where there is nothing to lose.

    Waiting for the others happens in C++, where a handler of ours would not be called until it is over; and
    torchrun sends SIGTERM when one of them has failed on its way here.
    """
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def is_lost_contact(error: RuntimeError) -> bool:
    """Whether gloo, NCCL or their store tell of a process that is gone or does not answer."""
    words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


def has_the_word(error: BaseException) -> bool:
    """Whether this process is to print its error; false where another one has told the same.

    Before the processes have met, all find the same mistakes in a command: process 0 tells of them. Whoever
    has merely lost contact waits, since torchrun ends it while the one that failed speaks.
    """
    processes = launched()
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
        return store.add(f"told/{key}", 1) == 1
    except RuntimeError:  # of a store that is gone with its process
        return True


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded; all processes must come here together where it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
