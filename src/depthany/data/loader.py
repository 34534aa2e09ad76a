"""Micro-batches in the sampler's order, read ahead by loader processes."""

from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from depthany.data.dataset import BadFile, Batch, TrainingSet
from depthany.data.report import ImageReport
from depthany.data.sampler import MixedBatches
from depthany.data.watch import POLL_S, Loaders, ReadNotes, begin_loader, deaths_raise_nothing


def read_batches(
    dataset: TrainingSet,
    sampler: MixedBatches,
    workers: int,
    unreadable: Path,
    pin: bool,
    max_unreadable_share: float = 1.0,
    read_timeout_s: float | None = None,
) -> Iterator[Batch]:
    """Micro-batches in the sampler's order. Its loader processes end with it, and at the latest when the
    training process exits.

    Args:
        workers: processes that read; 0 = this one.
        unreadable: list of the images that were left out or converted, see `ImageReport`.
        pin: put batches into page-locked memory.
        max_unreadable_share: largest share of images left out, of the labeled ones read so far and likewise
            of the unlabeled ones.
        read_timeout_s: longest wait for a loader process in seconds; None = for ever.

    Raises:
        ValueError: an image cannot be used and must be, or too many were left out; a loader process was
            killed, or took longer than `read_timeout_s`.
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
        report = ImageReport(unreadable, k, max_unreadable_share)
        while (batch := read()) is not None:
            if isinstance(batch, BadFile):
                raise ValueError(batch.message)
            report.add(k, batch.notes, sampler.drawn_before(k + 1))
            yield batch
            k += 1
    finally:
        if end is not None:
            end()
