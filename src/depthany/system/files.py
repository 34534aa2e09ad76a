"""Writes files that are either complete or not there."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4


def checkout_dir() -> Path | None:
    """Returns the checkout that the package is run from; None where it is installed without one."""
    folder = Path(__file__).resolve().parents[3]
    return folder if (folder / "configs").is_dir() and (folder / "src").is_dir() else None


def bundled(path: str) -> str:
    """Returns the path of a file or folder of the checkout, such as data/sample/encoder_vitt.safetensors.

    It is the path itself where that exists in the current folder or there is no checkout.
    """
    checkout = checkout_dir()
    if checkout is None or Path(path).exists() or not (checkout / path).exists():
        return path
    return str(checkout / path)


def if_exists(path: str) -> str | None:
    """Returns the path if there is such a file or folder, else None: a default that may be missing."""
    return path if Path(path).exists() else None


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a file beside `path`, flushes it to the disk and renames it.

    Raises:
        ValueError: it cannot be written (disk full, no permission); `path` is unchanged.
    """
    try:
        with whole_file(path) as partial:
            write(partial)
    except Exception as error:  # torch and safetensors have their own exceptions for a full disk
        raise ValueError(f"cannot write {path}: {why(error)}; files written before are complete") from error


def write_shared(path: Path, text: str, replace: bool) -> bool:
    """Writes a text file that several processes may write at once; it is always that of one of them, whole.

    Args:
        replace: False leaves a file that exists as it is.

    Returns:
        Whether it was written.

    Raises:
        ValueError: it cannot be written.
    """
    own = path.with_name(f".{path.name}.{uuid4().hex}")
    write_atomically(own, lambda partial: partial.write_text(text, encoding="utf-8"))
    try:
        if replace or not _can_link(own, path):
            os.replace(own, path)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        raise ValueError(f"cannot write {path}: {why(error)}") from error
    finally:
        own.unlink(missing_ok=True)


def _can_link(own: Path, path: Path) -> bool:
    """Returns whether a file could get `path` as a second path; raises FileExistsError if that exists."""
    try:
        os.link(own, path)
    except FileExistsError:
        raise
    except OSError:
        if path.exists():
            raise FileExistsError from None
        return False
    return True


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to fill; flushed and renamed at the end, or deleted after an exception."""
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


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Yields a path for a file or folder that replaces `out` at the end, or is deleted after an exception.

    Other files that are written beside it (the weights of a large graph) are moved beside `out`.

    A ValueError that names the path is raised with `out` in its place.

    Raises:
        ValueError: it cannot be written; `out` is unchanged.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            try:
                yield Path(folder) / out.name
            except ValueError as error:
                if folder not in str(error):
                    raise
                raise ValueError(str(error).replace(folder, str(out.parent))) from error
            for item in sorted(Path(folder).iterdir(), reverse=True):  # model.onnx after model.onnx.data
                _flush(item)
                target = out.with_name(item.name)
                if target.is_dir():
                    os.replace(target, Path(folder) / f"{item.name}.replaced")
                os.replace(item, target)
    except OSError as error:
        raise ValueError(f"cannot write {out}: {error.strerror or error}; nothing was changed") from error


def _flush(item: Path) -> None:
    """Flushes a file, or all files of a folder, to the disk."""
    for path in [item, *item.rglob("*")]:
        if path.is_file():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())


def why(error: BaseException) -> str:
    """Returns the reason in one line: the text of a system error, without its number and path."""
    return getattr(error, "strerror", None) or str(error).split("\n", 1)[0]


def remove_partials(folder: Path) -> None:
    """Deletes the partial files of killed writers in the folder. No writer may be running."""
    for partial in folder.glob(".*.partial"):
        partial.unlink()


def require_writable(out: Path) -> None:
    """Creates the output folder and a file in it, so that hours of work do not fail at the first write.

    Raises:
        ValueError: the folder cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".depthany_probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"cannot write into out={out}: {error.strerror}; pass another out=...") from None


def require_own_results(out: Path, marker: str, key: str, others: tuple[str, ...] = ()) -> None:
    """Checks that the results in the output folder, which will be replaced, are those of an earlier call.

    Args:
        marker: name of the JSON file that is written first.
        key: key at its top level, which another program's file of that name would not have.
        others: names of the other files that are replaced.

    Raises:
        ValueError: one of the files is there, and the marker is not, or is another program's.
    """
    found = [name for name in (marker, *others) if (out / name).exists()]
    if not found:
        return
    try:
        content = json.loads((out / marker).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # there is none, or it is not JSON
        content = None
    if not isinstance(content, dict) or key not in content:
        raise ValueError(
            f"out={out} holds {', '.join(found)}, which no earlier call of this command wrote and this one "
            "would replace: pass another out=..."
        )


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # makes the rename itself durable
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
