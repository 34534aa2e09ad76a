"""The index of a data set that is too large to list: one file on disk, for images in folders, tars or LMDB.

A data set is a sequence of shards (the files of one folder, a tar, an LMDB environment) in the order of their
paths below the root. An image is an entry of a shard. The file holds, little-endian and without gaps:

    magic, length of the header, header (JSON: kind, suffixes, counts)
    entries      (n + 1) x 20 bytes: offset in the shard, start of the name, size; the last one ends the names
    names        bytes of all names, in the order of the entries
    shards       (s + 1) x 40 bytes: first entry, size, mtime, byte where it breaks off, start of the name
    shard names  bytes of the paths below the root

Opening reads only header and shards. Paths are relative, so data and index can be moved.

An entry is read by `os.pread`, not through a memory mapping: one page fault maps up to 2 MiB of the page
cache around it (large folios, Linux 6). MADV_DONTNEED returns such pages, but the next look-up maps as many
again: 10,000 random look-ups grew a process from 416 to 1511 MB. Both ways use the page cache;
scripts/benchmark_index.py compares them.
"""

import hashlib
import json
import os
import struct
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

MAGIC = b"depthany index 1\n"
ENTRY = np.dtype([("offset", "<u8"), ("name", "<u8"), ("size", "<u4")])
SHARD = np.dtype(
    [("first", "<i8"), ("size", "<i8"), ("mtime_ns", "<i8"), ("broken_at", "<i8"), ("name", "<i8")]
)
WHOLE_FILE = 0xFFFFFFFF  # size of an entry that is a file or an LMDB value
NOT_BROKEN = -1
KINDS = ("folder", "tar", "lmdb")

_STATS_AT_ONCE = 16
_SAMPLED = 4096  # entries that are part of the identity
_LENGTH = struct.Struct("<Q")
_ENTRY = struct.Struct("<QQI")
_NAMES = struct.Struct("<8xQ4x8xQ4x")  # where the name of an entry starts, and that of the next


@dataclass(frozen=True)
class IndexHeader:
    """What an index describes.

    suffixes: endings of file names that count as images; empty if every entry counts (LMDB).
    passed_over: by shard and suffix, how many files look like images or other media but are not entries.
    """

    kind: str
    suffixes: list[str]
    entries: int
    name_bytes: int
    shards: int
    shard_name_bytes: int
    passed_over: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardRow:
    """A shard when the index was built.

    name: path below the root.
    entries, name_bytes: number of entries, and bytes of their names.
    size, mtime_ns: see `stamp`.
    broken_at: byte where a tar breaks off, or NOT_BROKEN.
    passed_over: see `IndexHeader`.
    """

    name: bytes
    entries: int
    name_bytes: int
    size: int
    mtime_ns: int
    broken_at: int
    passed_over: dict[str, int] = field(default_factory=dict)


class Index:
    """An opened index. It holds the table of shards in memory, and nothing for each image.

    Raises:
        ValueError: the file is damaged, or of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._file = path, -1
        with open(path, "rb") as file:
            self.header, self._entries_at = _read_header(file, path)
            self._names_at = self._entries_at + (self.header.entries + 1) * ENTRY.itemsize
            file.seek(self._names_at + self.header.name_bytes)
            self.shards = np.frombuffer(file.read((self.header.shards + 1) * SHARD.itemsize), SHARD)
            self._shard_names = file.read(self.header.shard_name_bytes)
            self._file = os.dup(file.fileno())  # `pread` shares no file position: safe after a fork
        self._first = np.ascontiguousarray(self.shards["first"])

    def __del__(self) -> None:
        if getattr(self, "_file", -1) >= 0:
            os.close(self._file)

    def __len__(self) -> int:
        return self.header.entries

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}  # a spawned process opens the file itself, a forked one inherits it

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def is_of(self, kind: str, suffixes: tuple[str, ...]) -> bool:
        """Returns whether it was built for this kind of shards and these suffixes."""
        return (self.header.kind, tuple(self.header.suffixes)) == (kind, suffixes)

    def entry(self, index: int) -> tuple[int, int, int]:
        """Returns shard, offset and size in bytes of entry `index`; size WHOLE_FILE means the whole file."""
        shard = self.shard_of(index)
        stored = os.pread(self._file, _ENTRY.size, self._entries_at + index * _ENTRY.size)
        offset, _, size = _ENTRY.unpack(stored)
        return shard, offset, size

    def entry_name(self, index: int) -> bytes:
        """Returns the name of entry `index` in its shard: a file name, the path of a tar member, an LMDB
        key.
        """
        self.shard_of(index)
        stored = os.pread(self._file, 2 * _ENTRY.size, self._entries_at + index * _ENTRY.size)
        start, end = _NAMES.unpack(stored)
        return os.pread(self._file, end - start, self._names_at + start)

    def shard_of(self, index: int) -> int:
        """Returns the number of the shard that holds entry `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} entries, entry {index} was asked for")
        return int(np.searchsorted(self._first, index, side="right")) - 1

    def shard_name(self, shard: int) -> bytes:
        """Returns the path of a shard below the root."""
        return self._shard_names[self.shards["name"][shard] : self.shards["name"][shard + 1]]

    def shard_sizes(self) -> NDArray[np.int64]:
        """Returns [s] the entries of each shard; 0 for a folder that holds only folders."""
        return np.diff(self._first)

    def identity(self) -> str:
        """Returns a hash that is equal for two indices of the same images, wherever and whenever they were
        built.

        It covers suffixes and counts, path, size and first entry of every shard, and `_SAMPLED` entries,
        spread evenly, with their names. Computing it takes a moment for a data set of any size.
        """
        counts = {key: value for key, value in self.header.__dict__.items() if key != "passed_over"}
        digest = hashlib.blake2b(json.dumps(counts, sort_keys=True).encode(), digest_size=16)
        for key in ("first", "size", "broken_at", "name"):
            digest.update(self.shards[key].tobytes())
        digest.update(self._shard_names)
        for index in np.unique(np.linspace(0, len(self) - 1, _SAMPLED, dtype=np.int64)):
            digest.update(repr((self.entry(int(index)), self.entry_name(int(index)))).encode())
        return digest.hexdigest()

    def broken(self) -> list[tuple[str, int]]:
        """Returns the tars that are truncated, with the byte where; the images before it are in the index."""
        at = self.shards["broken_at"][:-1]
        return [(os.fsdecode(self.shard_name(int(s))), int(at[s])) for s in np.flatnonzero(at != NOT_BROKEN)]

    def passed_over(self) -> Counter[str]:
        """Returns, by suffix, how many files look like images or other media and are not in the index."""
        total = Counter[str]()
        for counts in self.header.passed_over.values():
            total.update(counts)
        return total

    def slice(self, shard: int) -> tuple[NDArray[np.void], bytes]:
        """Returns the entries [n] ENTRY of a shard, names counted from 0, and the bytes of the names."""
        first, last = int(self._first[shard]), int(self._first[shard + 1])
        at = self._entries_at + first * ENTRY.itemsize
        entries = np.fromfile(self.path, ENTRY, last - first + 1, offset=at)
        start, end = int(entries["name"][0]), int(entries["name"][-1])
        entries["name"] -= np.uint64(start)
        with open(self.path, "rb") as file:
            file.seek(self._names_at + start)
            return entries[:-1], file.read(end - start)

    def changed(self, root: Path) -> list[str]:
        """Returns the shards that are gone, or whose size or mtime has changed since the index was built."""
        names = [self.shard_name(shard) for shard in range(self.header.shards)]
        with ThreadPoolExecutor(_STATS_AT_ONCE) as pool:  # on a network disk `stat` mostly waits
            shares = [names[k::_STATS_AT_ONCE] for k in range(_STATS_AT_ONCE)]
            found = pool.map(lambda share: [stamp(self.header.kind, root, name) for name in share], shares)
        now = np.empty((len(names), 2), np.int64)
        for k, stamps in enumerate(found):
            now[k::_STATS_AT_ONCE] = [found or (-1, -1) for found in stamps] or np.empty((0, 2))
        then = np.stack([self.shards["size"][:-1], self.shards["mtime_ns"][:-1]], axis=1)
        return [os.fsdecode(names[i]) or "." for i in np.flatnonzero((now != then).any(axis=1))]


def shard_path(kind: str, root: Path, name: bytes) -> str:
    """Returns the path of a shard: a folder, a .tar, or the data.mdb of an LMDB environment."""
    path = os.path.join(root, os.fsdecode(name)) if name else str(root)
    return os.path.join(path, "data.mdb") if kind == "lmdb" else path


def stamp(kind: str, root: Path, name: bytes) -> tuple[int, int] | None:
    """Returns size and mtime_ns of a shard, which change when the shard changes; None if it is gone.

    The mtime of a folder changes when a file is added, renamed or removed. Its size is taken as 0, since file
    systems define it differently.
    """
    try:
        state = os.stat(shard_path(kind, root, name))
    except OSError:
        return None
    return (0 if kind == "folder" else state.st_size), state.st_mtime_ns


def write_index(
    path: Path,
    kind: str,
    suffixes: list[str],
    rows: list[ShardRow],
    entries: Iterable[NDArray[np.void]],
    names: Iterable[bytes],
) -> None:
    """Writes an index file to `path`. The bytes depend only on the arguments.

    Args:
        rows: shards in their final order.
        entries: for each shard its entries [n] ENTRY, names counted from 0.
        names: for each shard the bytes of its names. Both are iterators, since they need not fit into memory.
    """
    shards = _shard_table(rows)
    shard_names = b"".join(row.name for row in rows)
    name_bytes = sum(row.name_bytes for row in rows)
    others = {os.fsdecode(row.name): row.passed_over for row in rows if row.passed_over}
    counts = int(shards["first"][-1]), name_bytes, len(rows), len(shard_names)
    header = IndexHeader(kind, suffixes, *counts, others)
    with open(path, "wb") as file:
        text = json.dumps(header.__dict__, sort_keys=True).encode()
        file.write(MAGIC + _LENGTH.pack(len(text)) + text)
        start = 0
        for row, part in zip(rows, entries, strict=True):
            moved = part.copy()
            moved["name"] += np.uint64(start)
            file.write(moved.tobytes())
            start += row.name_bytes
        file.write(_ENTRY.pack(0, start, 0))
        file.writelines(names)
        file.write(shards.tobytes() + shard_names)


def _shard_table(rows: list[ShardRow]) -> NDArray[np.void]:
    table = np.zeros(len(rows) + 1, SHARD)
    table["first"][1:] = np.cumsum([row.entries for row in rows], dtype=np.int64)
    table["name"][1:] = np.cumsum([len(row.name) for row in rows], dtype=np.int64)
    for key in ("size", "mtime_ns", "broken_at"):
        table[key][:-1] = [getattr(row, key) for row in rows]
    return table


def _read_header(file: BinaryIO, path: Path) -> tuple[IndexHeader, int]:
    again = "delete it to have it rebuilt"
    try:
        if file.read(len(MAGIC)) != MAGIC:
            raise ValueError("not an index of this version")
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        start = len(MAGIC) + _LENGTH.size + length
        if start > os.stat(path).st_size:
            raise ValueError("the header is cut off")
        header = IndexHeader(**json.loads(file.read(length)))
    except (ValueError, TypeError, struct.error) as error:
        raise ValueError(f"{path}: {error}: {again}") from None
    entries, shards = (header.entries + 1) * ENTRY.itemsize, (header.shards + 1) * SHARD.itemsize
    expected = start + entries + header.name_bytes + shards + header.shard_name_bytes
    if os.stat(path).st_size != expected:
        found = os.stat(path).st_size
        raise ValueError(f"{path}: {found} bytes, expected {expected}: {again}")
    return header, start
