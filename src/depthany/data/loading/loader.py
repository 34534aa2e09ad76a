"""Micro-batches in the sampler's order, read ahead by loader processes."""

from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.util import Finalize
from typing import Any

from torch.utils.data import DataLoader

from depthany.data.batch import BadFile, Batch
from depthany.data.dataset import TrainingSet
from depthany.data.loading.watch import POLL_S, Loaders, ReadNotes, begin_loader, deaths_raise_nothing
from depthany.data.sampler import MixedBatches


def read_batches(
    dataset: TrainingSet,
    sampler: MixedBatches,
    workers: int,
    pin: bool,
    take: Callable[[int, Batch], None],
    read_timeout_s: float | None = None,
) -> Iterator[Batch]:
    """Micro-batches in the sampler's order. Its loader processes end with it, and at the latest when the
    training process exits.

    Args:
        workers: processes that read; 0 = this one.
        pin: put batches into page-locked memory.
        take: sees each batch with its number before it is given; it counts the images that were left out.
        read_timeout_s: longest wait for a loader process in seconds; None = for ever.

    Raises:
        ValueError: an image cannot be used and must be; a loader process was killed, or took longer than
            `read_timeout_s`; and whatever `take` raises.
    """
    notes = ReadNotes(workers)
    loader = DataLoader(
        dataset,
        sampler=sampler,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=pin,
        timeout=POLL_S if workers else 0,
        worker_init_fn=partial(begin_loader, notes) if workers else None,
    )
    with deaths_raise_nothing():
        batches: Any = iter(loader)
    read: Callable[[], Batch | BadFile | None] = partial(next, batches, None)
    end: Callable[[], object] | None = None
    if workers:
        loaders = Loaders(batches, dataset, notes, read_timeout_s)
        # At exit Python sends SIGTERM to the processes that are left and waits for them. Ours ignore it: as
        # long as anything held this iterator, the traceback of an error for one, the wait would have no end.
        read, end = loaders.next, Finalize(None, loaders.end, exitpriority=100)
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
