"""Micro-batches in the sampler's order, read ahead by loader processes."""

from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.util import Finalize
from typing import Any

from torch.utils.data import DataLoader

from depthany.data.batch import BadFile, Batch
from depthany.data.dataset import TrainingSet
from depthany.data.loading.room import PREFETCH, SHARED_MEMORY, choose_prefetch, free_room
from depthany.data.loading.watch import (
    POLL_S,
    CurrentReads,
    WatchedWorkers,
    init_worker,
    without_sigchld_handler,
)
from depthany.data.sampler import MixedBatches
from depthany.system.distributed import Processes
from depthany.system.plugins import loaded_plugins


def plan_prefetch(
    dataset: TrainingSet, sampler: MixedBatches, workers: int, processes: Processes
) -> tuple[int, list[str]]:
    """Returns how many micro-batches each loader process reads ahead, and lines for the user.

    Raises:
        ValueError: shared memory has too little room; the message says what helps.
    """
    labeled, unlabeled = sampler.per_batch
    pairs = -(-unlabeled // 2)
    of_process = -(-labeled // sampler.size), min(unlabeled, 2 * -(-pairs // sampler.size))
    room = free_room()
    prefetch = choose_prefetch(dataset.batch_bytes(*of_process), workers, processes, room)
    if prefetch == PREFETCH or room is None:
        return prefetch, []
    line = (
        f"{SHARED_MEMORY} has {room / 1e6:.3g} MB free: each loader process reads {prefetch} batches ahead "
        f"instead of {PREFETCH}, which may be slower; docker run --shm-size=8g gives more"
    )
    return prefetch, [line]


def read_batches(
    dataset: TrainingSet,
    sampler: MixedBatches,
    workers: int,
    pin: bool,
    take: Callable[[int, Batch], None],
    read_timeout_s: float | None = None,
    prefetch: int = PREFETCH,
) -> Iterator[Batch]:
    """Yields micro-batches in the sampler's order.

    The loader processes end with this iterator, and at the latest when the training process exits.

    Args:
        workers: number of loader processes; 0 = read in this process.
        pin: put batches into page-locked memory.
        take: called with number and batch before a batch is yielded; it counts the images that were left out.
        read_timeout_s: longest wait for a loader process in seconds; None = for ever.
        prefetch: micro-batches that each loader process reads ahead.

    Raises:
        ValueError: an image is unusable and must not be skipped; a loader process was killed, or took longer
            than `read_timeout_s`; and whatever `take` raises.
    """
    reads = CurrentReads(workers)
    loader = DataLoader(
        dataset,
        sampler=sampler,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        pin_memory=pin,
        timeout=POLL_S if workers else 0,
        worker_init_fn=partial(init_worker, reads, loaded_plugins()) if workers else None,
    )
    with without_sigchld_handler():
        batches: Any = iter(loader)
    read: Callable[[], Batch | BadFile | None] = partial(next, batches, None)
    end: Callable[[], object] | None = None
    if workers:
        watched = WatchedWorkers(batches, dataset, reads, read_timeout_s)
        # At exit Python sends SIGTERM to the processes that are left, and waits for them. Ours ignore it, so
        # if anything still held this iterator (a traceback, for example), Python would wait for ever.
        read, end = watched.next, Finalize(None, watched.end, exitpriority=100)
    try:
        k = sampler.start
        while (batch := read()) is not None:
            if isinstance(batch, BadFile):
                raise ValueError(batch.message)
            take(k, batch)
            yield batch
            k += 1
    finally:
        if end is not None:
            end()
