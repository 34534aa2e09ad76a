"""Room in shared memory (/dev/shm) for the batches that loader processes read ahead."""

import errno
import os
import shutil
from pathlib import Path

from depthany.system.distributed import Processes

# Where Linux keeps it; 64 MB in a container of Docker, unless asked for more
SHARED_MEMORY = Path("/dev/shm")
PREFETCH = 4  # batches that a loader process reads ahead, where there is room
REMEDY = (
    "give the container more (docker run --shm-size=8g), pass workers=0, which needs none, or take smaller "
    "batches (batch_size, crop_size, accumulate)"
)
_NO_ROOM = (errno.ENOSPC, errno.ENOMEM, errno.EAGAIN)
_IN_USE = 2  # batches of a training process: the one that it has, and the one that it takes
_USABLE = 0.9  # share of the free room: NCCL and other programs take some


def free_room() -> int | None:
    """Returns the free bytes of shared memory; None where the system has no such folder."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None


def choose_prefetch(batch_bytes: int, workers: int, processes: Processes, room: int | None) -> int:
    """Returns how many batches each loader process reads ahead: PREFETCH, or fewer where room is short.

    All processes of a run call it together, before the first of them reads, and get the same.

    Args:
        batch_bytes: size of a micro-batch of one training process.
        workers: loader processes of one training process; 0 reads nothing ahead.
        room: free bytes of shared memory, see `free_room`.

    Raises:
        ValueError: there is no room even for one batch each.
    """
    trainers = processes.max(processes.local_rank) + 1  # that share this machine
    room = -processes.max(-room) if room is not None else None
    if workers == 0 or room is None:
        return PREFETCH
    for prefetch in range(PREFETCH, 0, -1):
        if needed(batch_bytes, workers, prefetch, trainers) <= _USABLE * room:
            return prefetch
    least = needed(batch_bytes, workers, 1, trainers)
    raise ValueError(
        f"the loader processes need {_mb(least)} MB of shared memory ({SHARED_MEMORY}) for batches of "
        f"{_mb(batch_bytes)} MB (workers={workers}), but only {_mb(room)} MB are free: {REMEDY}"
    )


def needed(batch_bytes: int, workers: int, prefetch: int, trainers: int) -> int:
    """Returns the bytes of all batches that are in flight at once on a machine."""
    return (workers * prefetch + _IN_USE) * batch_bytes * trainers


def is_full(error: BaseException) -> bool:
    """Whether PyTorch failed to put a tensor into shared memory because it was full."""
    text = str(error)
    is_shared = "shared memory" in text or "</torch_" in text  # what it names its shared files
    return is_shared and any(os.strerror(number) in text for number in _NO_ROOM)


def _mb(count: int) -> str:
    return f"{count / 1e6:.3g}"
