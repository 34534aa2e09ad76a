"""Micro-batches in the sampler's order, read ahead by loader processes."""

import signal
from collections.abc import Callable, Iterator
from multiprocessing.util import Finalize
from typing import Any

from torch.utils.data import DataLoader

from depthany.data.dataset import BadFile, Batch, TrainingSet
from depthany.data.sampler import MixedBatches


def read_batches(
    dataset: TrainingSet,
    sampler: MixedBatches,
    workers: int,
    pin: bool,
    take: Callable[[int, Batch], None],
) -> Iterator[Batch]:
    """Micro-batches in the sampler's order. Its loader processes end with it, and at the latest when the
    training process exits.

    Args:
        workers: processes that read; 0 = this one.
        pin: put batches into page-locked memory.
        take: sees each batch with its number before it is given; it counts the images that were left out.

    Raises:
        ValueError: an image cannot be used and must be; and whatever `take` raises.
    """
    loader = DataLoader(
        dataset,
        sampler=sampler,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=pin,
        worker_init_fn=_leave_signals_to_the_training_process,
    )
    batches: Any = iter(loader)
    # At exit Python sends SIGTERM to the processes that are left and waits for them. Ours ignore it: as
    # long as anything held this iterator, the traceback of an error for one, the wait would have no end.
    end = Finalize(None, batches._shutdown_workers, exitpriority=100) if workers else None
    try:
        k = sampler.start
        while (batch := _next(batches, workers)) is not None:
            if isinstance(batch, BadFile):
                raise ValueError(batch.message)
            take(k, batch)
            yield batch
            k += 1
    finally:
        if end is not None:
            end()


def _next(batches: Iterator[Batch | BadFile], workers: int) -> Batch | BadFile | None:
    try:
        return next(batches, None)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ValueError(
            f"a loader process was killed, perhaps because memory ran out ({str(error).splitlines()[0]});"
            f" the same command continues from the last checkpoint, perhaps with less than workers={workers}"
        ) from error


def _leave_signals_to_the_training_process(_worker: int) -> None:
    """Ctrl-C, `timeout` and Slurm signal every process of a run; a loader that died would spoil the save.

    A loader ends when the training process closes its queue, or at most 5 s after that process is gone.
    """
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
