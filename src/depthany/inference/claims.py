"""Which shards of a store this process labels: workers take them by file locks, on one machine or on several.

The operating system releases the lock of a worker that was killed, so no lease time-out is needed.
"""

from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from depthany.data.pseudo_labels.store import ShardRange, StoreSettings


def missing_shards(store: Path, header: StoreSettings) -> list[ShardRange]:
    """Returns the shards that are not done: those without record, or whose labels were deleted."""
    there = {path.name for path in (store / "shards").glob("*")}
    return [
        shard
        for shard in header.shards()
        if not {shard.record_path(store).name, shard.path(store).name} <= there
    ]


def _is_done(store: Path, shard: ShardRange) -> bool:
    return shard.record_path(store).exists() and shard.path(store).exists()


class Claims:
    """Iterates over the shards that no other worker labels, and locks each of them.

    Args:
        store: folder of the store.
        header: header of the store.

    Attributes:
        open: shards that were not done when this object was made.
    """

    def __init__(self, store: Path, header: StoreSettings) -> None:
        self.store = store
        self._locks: dict[ShardRange, FileLock] = {}
        (store / "shards").mkdir(parents=True, exist_ok=True)
        self.open = missing_shards(store, header)

    def __iter__(self) -> Iterator[ShardRange]:
        """Yields each open shard that could be locked.

        Raises:
            ValueError: the disk has no file locks.
        """
        for shard in self.open:
            if self._lock(shard):
                yield shard

    def _lock(self, shard: ShardRange) -> bool:
        """Whether the shard is now locked by this worker; False if it is done or another one has it."""
        if _is_done(self.store, shard):
            return False
        path = shard.record_path(self.store)
        # Not thread_local: the thread that writes the shard releases the lock.
        lock = FileLock(path.with_suffix(".lock"), timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            return False
        except NotImplementedError:
            raise ValueError(
                f"{path.parent}: this disk has no file locks: label into a folder on another disk"
            ) from None
        self._locks[shard] = lock
        if _is_done(self.store, shard):  # another worker finished it between the look and the lock
            self.release(shard)
            return False
        return True

    def release(self, shard: ShardRange) -> None:
        """Unlocks a shard that is done."""
        lock = self._locks.pop(shard)
        Path(lock.lock_file).unlink(missing_ok=True)  # a worker that gets the lock now finds the note
        lock.release()

    def release_all(self) -> None:
        """Unlocks all shards that are not done; their lock files remain."""
        for lock in self._locks.values():
            lock.release()
        self._locks.clear()
