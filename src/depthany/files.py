"""Files that are either whole or not there."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, flush it to the disk, then rename it: never is half of it there.

    Raises:
        ValueError: it cannot be written (disk full, no permission); what stood at `path` before stands there
            still.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except Exception as error:  # torch and safetensors tell of a full disk by exceptions of their own
        with suppress(OSError):  # of a folder that could not be made
            partial.unlink()
        reason = getattr(error, "strerror", None) or str(error).split("\n", 1)[0]
        raise ValueError(f"cannot write {path}: {reason}; what was written before is whole") from error


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # makes the rename itself durable
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
