"""Bytes of an image by its place in a shard: `os.pread` of a tar, a value of an LMDB environment."""

import os
import threading
from collections import OrderedDict
from typing import Any

from depthany.system.packages import optional, reason

_OPEN_FILES = 64  # per process and set; far below the usual limit of 1024
_OPEN_ENVIRONMENTS = 16
_LMDB_READS = 1000  # after so many an environment is opened anew, which unmaps the pages it has touched


class OpenFiles:
    """File descriptors of the files read last, at most `limit`; safe with threads, fork and spawn.

    `os.pread` has no position that processes could share, so an inherited descriptor would do. Each process
    keeps a table of its own all the same, since a lock held by another thread at the fork stays locked.
    """

    def __init__(self, limit: int = _OPEN_FILES) -> None:
        self.limit = limit
        self._reset()

    def _reset(self) -> None:
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._open: OrderedDict[str, int] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["limit"])  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self._open)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close what this process has open; a later read opens it again."""
        while self._open:
            os.close(self._open.popitem()[1])

    def read(self, path: str, offset: int, size: int) -> bytes:
        """`size` bytes of a file from byte `offset`.

        Raises:
            ValueError: the file cannot be read, or ends before them.
        """
        if self._pid != os.getpid():
            self.close()  # the child's copies of its parent's descriptors
            self._reset()
        try:
            with self._lock:  # no other thread closes it meanwhile
                stored = _pread(self._descriptor(path), size, offset)
        except OSError as error:
            raise ValueError(f"{path}: cannot read the file: {reason(error)}") from None
        if len(stored) < size:
            raise ValueError(
                f"{path}: ends at byte {offset + len(stored)}, within an image of {size} bytes at {offset}: "
                "the file has changed since its index was built"
            )
        return stored

    def _descriptor(self, path: str) -> int:
        if path not in self._open:
            if len(self._open) >= self.limit:
                os.close(self._open.popitem(last=False)[1])
            self._open[path] = os.open(path, os.O_RDONLY)
        self._open.move_to_end(path)
        return self._open[path]


def _pread(descriptor: int, size: int, offset: int) -> bytes:
    stored = os.pread(descriptor, size, offset)
    while 0 < len(stored) < size:  # network disks may give less than asked for
        more = os.pread(descriptor, size - len(stored), offset + len(stored))
        if not more:
            break
        stored += more
    return stored


def open_lmdb(path: str) -> Any:
    """An LMDB environment for reading, without lock file: the folder may be read-only.

    Raises:
        ValueError: the package is missing, or the folder holds no environment.
    """
    lmdb = optional("lmdb", f"{path}: reading LMDB")
    try:
        return lmdb.open(path, readonly=True, lock=False, readahead=False, create=False)
    except lmdb.Error as error:
        raise ValueError(f"{path}: cannot open the LMDB environment: {reason(error)}") from None


class _Environments:
    """LMDB environments of this process: one must not be opened twice in it, nor used after a fork."""

    def __init__(self) -> None:
        self.pid, self.lock = os.getpid(), threading.Lock()
        self.open: OrderedDict[str, tuple[Any, int]] = OrderedDict()  # path -> environment, reads so far

    def read(self, path: str, key: bytes) -> bytes | None:
        with self.lock:
            environment, reads = self.open.pop(path, (None, 0))
            if reads >= _LMDB_READS:
                environment.close()
                environment, reads = None, 0
            if environment is None:
                if len(self.open) >= _OPEN_ENVIRONMENTS:
                    self.open.popitem(last=False)[1][0].close()
                environment = open_lmdb(path)
            self.open[path] = environment, reads + 1
            with environment.begin() as transaction:
                value = transaction.get(key)
                return None if value is None else bytes(value)


_environments = _Environments()


def read_lmdb(path: str, key: bytes) -> bytes:
    """The value of a key; raises a `ValueError` where it cannot be read, or is there no more."""
    global _environments
    if _environments.pid != os.getpid():
        for environment, _ in _environments.open.values():
            environment.close()  # without lock file it shares nothing with the parent
        _environments = _Environments()
    try:
        value = _environments.read(os.path.normpath(path), key)
    except ValueError:
        raise
    except Exception as error:  # lmdb.Error and what else a damaged environment leads to
        raise ValueError(f"{path}: cannot read key {key!r}: {reason(error)}") from None
    if value is None:
        raise ValueError(f"{path}: no key {key!r}: it has changed since its index was built")
    return value
