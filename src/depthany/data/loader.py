"""Micro-batches in the sampler's order, read ahead by loader processes."""

import signal
from collections.abc import Iterator
from pathlib import Path

from torch.utils.data import DataLoader

from depthany.data.dataset import BadFile, Batch, TrainingSet
from depthany.data.sampler import MixedBatches


def read_batches(
    dataset: TrainingSet, sampler: MixedBatches, workers: int, unreadable: Path, pin: bool
) -> Iterator[Batch]:
    """Micro-batches in the sampler's order; unreadable files that were skipped are added to the list
    `unreadable`.
    """
    loader = DataLoader(
        dataset,
        sampler=sampler,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=pin,
        worker_init_fn=_ignore_interrupt,
    )
    for batch in loader:
        if isinstance(batch, BadFile):
            raise ValueError(batch.message)
        if batch.unreadable:
            with open(unreadable, "a") as file:
                file.writelines(f"{line}\n" for line in batch.unreadable)
        yield batch


def _ignore_interrupt(_worker: int) -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the training process decides
