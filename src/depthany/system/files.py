"""Files that are either whole or not there."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, flush it to the disk, then rename it: never is half of it there.

    Raises:
        ValueError: it cannot be written (disk full, no permission); what stood at `path` before stands there
            still.
    """
    try:
        with whole_file(path) as partial:
            write(partial)
    except Exception as error:  # torch and safetensors tell of a full disk by exceptions of their own
        raise ValueError(f"cannot write {path}: {why(error)}; what was written before is whole") from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to fill; renamed to it at the end, flushed to the disk, or deleted if there is an
    exception.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        mode = partial.stat().st_mode  # what the user's umask gives; safetensors makes files private
        yield partial
        partial.chmod(mode)
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except BaseException:  # KeyboardInterrupt too
        with suppress(OSError):  # of a folder that could not be made
            partial.unlink()
        raise


def why(error: BaseException) -> str:
    """The reason in one line: of an error of the system its text, without number and path."""
    return getattr(error, "strerror", None) or str(error).split("\n", 1)[0]


def remove_partials(folder: Path) -> None:
    """Delete the half files that writers left in the folder when they were killed; none may be at work."""
    for partial in folder.glob(".*.partial"):
        partial.unlink()


def require_writable(out: Path) -> None:
    """Make the output folder and a file in it, so that hours of work do not end at the first write."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".depthany_probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"cannot write into out={out}: {error.strerror}; pass another out=...") from None


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # makes the rename itself durable
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
