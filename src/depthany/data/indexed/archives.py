"""Reads the bytes of an image: a part of a tar, or a value of an LMDB environment."""

import os
import threading
from collections import OrderedDict
from typing import Any

from depthany.system.packages import optional, reason

_OPEN_FILES = 64  # per process and set; far below the usual limit of 1024
_OPEN_ENVIRONMENTS = 16
_LMDB_READS = 1000  # after so many an environment is reopened, which unmaps the pages it has touched


class OpenFiles:
    """Keeps at most `limit` files open, those read last. Safe with threads, fork and spawn.

    `os.pread` has no file position that processes could share, so an inherited descriptor would be fine. Each
    process still has its own table, since a lock that another thread held at the fork would stay locked.
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
        """Closes all files of this process; a later read opens them again."""
        while self._open:
            os.close(self._open.popitem()[1])

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Returns `size` bytes of a file from byte `offset` on.

        Raises:
            ValueError: the file cannot be read, or ends too early.
        """
        if self._pid != os.getpid():
            self.close()  # the descriptors that the parent had open
            self._reset()
        try:
            with self._lock:  # another thread must not close it meanwhile
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
    while 0 < len(stored) < size:  # network disks may return less than asked for
        more = os.pread(descriptor, size - len(stored), offset + len(stored))
        if not more:
            break
        stored += more
    return stored


def open_lmdb(path: str) -> Any:
    """Opens an LMDB environment for reading, without a lock file, since the folder may be read-only.

    Raises:
        ValueError: the package is missing, or the folder is not an environment.
    """
    lmdb = optional("lmdb", f"{path}: reading LMDB")
    try:
        return lmdb.open(path, readonly=True, lock=False, readahead=False, create=False)
    except lmdb.Error as error:
        raise ValueError(f"{path}: cannot open the LMDB environment: {reason(error)}") from None


class _Environments:
    """The open LMDB environments of a process. One must not be opened twice, nor used after a fork."""

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
    """Returns the value of a key. Raises ValueError if it cannot be read or does not exist."""
    global _environments
    if _environments.pid != os.getpid():
        for environment, _ in _environments.open.values():
            environment.close()  # without a lock file it shares nothing with the parent
        _environments = _Environments()
    try:
        value = _environments.read(os.path.normpath(path), key)
    except ValueError:
        raise
    except Exception as error:  # a damaged environment can raise more than lmdb.Error
        raise ValueError(f"{path}: cannot read key {key!r}: {reason(error)}") from None
    if value is None:
        raise ValueError(f"{path}: no key {key!r}: the environment has changed since its index was built")
    return value
