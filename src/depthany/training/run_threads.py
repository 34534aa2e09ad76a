"""Keeps a run on the number of threads that it began with."""

import torch

from depthany.system.device import Compute
from depthany.system.processes import cores
from depthany.training.checkpoints.state import Progress


def keep_threads(progress: Progress, asked: int | None, compute: Compute) -> list[str]:
    """Keeps the number of threads that the run began with, unless one is asked for.

    Returns:
        Lines on why the threads are not one per core.
    """
    began, here = progress.threads, torch.get_num_threads()
    if asked is None and began is not None and began <= cores():
        torch.set_num_threads(began)
    progress.threads = torch.get_num_threads()
    if progress.threads != here:
        return [
            f"threads: {began}, as when the run began, for the same bits; threads={here} suits this machine"
        ]
    return [compute.note] if compute.note else []
