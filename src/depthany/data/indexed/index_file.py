"""The index of a set that is too large to list: one file on disk, for images in folders, tars or LMDB.

A set is a sequence of shards (a folder's own files, a tar, an LMDB environment), ordered by their path below
the root; an image is an entry of a shard. The file holds, little-endian and without gaps:

    magic, length of the header, header (JSON: kind, suffixes, counts)
    entries       (n + 1) x 20 bytes: offset in the shard, start of its name, size; the last ends the names
    names         bytes of all names, in the order of the entries
    shards        (s + 1) x 40 bytes: first entry, size, mtime, byte where it breaks off, start of its name
    shard names   bytes of the paths below the root

Opening reads header and shards, whatever the number of images. Paths are relative: data and index can move.

An entry is read by `os.pread`, not through a mapping: a fault maps up to 2 MiB of what the page cache holds
around it (large folios, Linux 6). MADV_DONTNEED hands such pages back, but the next look-up maps as many
again: 10,000 random ones grew a process from 416 to 1511 MB. The page cache serves both ways alike;
scripts/benchmark_index.py compares them.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

MAGIC = b"depthany index 1\n"
ENTRY = np.dtype([("offset", "<u8"), ("name", "<u8"), ("size", "<u4")])
SHARD = np.dtype(
    [("first", "<i8"), ("size", "<i8"), ("mtime_ns", "<i8"), ("broken_at", "<i8"), ("name", "<i8")]
)
WHOLE_FILE = 0xFFFFFFFF  # size of an entry that is a file or a value of its own
NOT_BROKEN = -1
KINDS = ("folder", "tar", "lmdb")

_STATS_AT_ONCE = 16
_SAMPLED = 4096  # entries that are part of the identity
_LENGTH = struct.Struct("<Q")
_ENTRY = struct.Struct("<QQI")
_NAMES = struct.Struct("<8xQ4x8xQ4x")  # where the name of an entry starts, and that of the next


@dataclass(frozen=True)
class Header:
    """What an index is of.

    suffixes: endings of the file names that count as images; empty where every entry does (LMDB).
    """

    kind: str
    suffixes: list[str]
    entries: int
    name_bytes: int
    shards: int
    shard_name_bytes: int


@dataclass(frozen=True)
class ShardRow:
    """A shard: path below the root, number of entries and bytes of their names, and how it was found.

    broken_at: byte where a tar breaks off, or NOT_BROKEN.
    """

    name: bytes
    entries: int
    name_bytes: int
    size: int
    mtime_ns: int
    broken_at: int


class Index:
    """An opened index; a process holds the table of shards and nothing per image.

    Raises:
        ValueError: the file is damaged or of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._file = path, -1
        with open(path, "rb") as file:
            self.header, self._entries_at = _read_header(file, path)
            self._names_at = self._entries_at + (self.header.entries + 1) * ENTRY.itemsize
            file.seek(self._names_at + self.header.name_bytes)
            self.shards = np.frombuffer(file.read((self.header.shards + 1) * SHARD.itemsize), SHARD)
            self._shard_names = file.read(self.header.shard_name_bytes)
            self._file = os.dup(file.fileno())  # `pread` has no position to share: safe after a fork
        self._first = np.ascontiguousarray(self.shards["first"])

    def __del__(self) -> None:
        if getattr(self, "_file", -1) >= 0:
            os.close(self._file)

    def __len__(self) -> int:
        return self.header.entries

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}  # a spawned process opens the file itself; a forked one inherits it

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def is_of(self, kind: str, suffixes: tuple[str, ...]) -> bool:
        """Whether it was built for this kind of shards and these endings."""
        return (self.header.kind, tuple(self.header.suffixes)) == (kind, suffixes)

    def entry(self, index: int) -> tuple[int, int, int]:
        """Shard, offset and size in bytes of entry `index`; size WHOLE_FILE means all there is."""
        shard = self.shard_of(index)
        stored = os.pread(self._file, _ENTRY.size, self._entries_at + index * _ENTRY.size)
        offset, _, size = _ENTRY.unpack(stored)
        return shard, offset, size

    def entry_name(self, index: int) -> bytes:
        """Name of entry `index` in its shard: a file name, a tar member's path, an LMDB key."""
        self.shard_of(index)
        stored = os.pread(self._file, 2 * _ENTRY.size, self._entries_at + index * _ENTRY.size)
        start, end = _NAMES.unpack(stored)
        return os.pread(self._file, end - start, self._names_at + start)

    def shard_of(self, index: int) -> int:
        """Number of the shard that holds entry `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} entries, entry {index} was asked for")
        return int(np.searchsorted(self._first, index, side="right")) - 1

    def shard_name(self, shard: int) -> bytes:
        """Path of a shard below the root."""
        return self._shard_names[self.shards["name"][shard] : self.shards["name"][shard + 1]]

    def shard_sizes(self) -> NDArray[np.int64]:
        """[s] entries of each shard; 0 for a folder that holds folders alone."""
        return np.diff(self._first)

    def identity(self) -> str:
        """Hash by which two indices of the same images are known, wherever and whenever they were built.

        Of suffixes and counts, the path, size and first entry of every shard, and `_SAMPLED` entries that are
        spread evenly, with their names: all that is in memory, and a moment's reading in a set of any size.
        """
        digest = hashlib.blake2b(json.dumps(self.header.__dict__, sort_keys=True).encode(), digest_size=16)
        for key in ("first", "size", "broken_at", "name"):
            digest.update(self.shards[key].tobytes())
        digest.update(self._shard_names)
        for index in np.unique(np.linspace(0, len(self) - 1, _SAMPLED, dtype=np.int64)):
            digest.update(repr((self.entry(int(index)), self.entry_name(int(index)))).encode())
        return digest.hexdigest()

    def broken(self) -> list[tuple[str, int]]:
        """Tars that break off, each with the byte where: what comes before it is in the index."""
        at = self.shards["broken_at"][:-1]
        return [(os.fsdecode(self.shard_name(int(s))), int(at[s])) for s in np.flatnonzero(at != NOT_BROKEN)]

    def slice(self, shard: int) -> tuple[NDArray[np.void], bytes]:
        """Entries [n] ENTRY of a shard, with names from 0, and the bytes of their names."""
        first, last = int(self._first[shard]), int(self._first[shard + 1])
        at = self._entries_at + first * ENTRY.itemsize
        entries = np.fromfile(self.path, ENTRY, last - first + 1, offset=at)
        start, end = int(entries["name"][0]), int(entries["name"][-1])
        entries["name"] -= np.uint64(start)
        with open(self.path, "rb") as file:
            file.seek(self._names_at + start)
            return entries[:-1], file.read(end - start)

    def changed(self, root: Path) -> list[str]:
        """Shards whose size or mtime is not what it was when the index was built, or that are gone."""
        names = [self.shard_name(shard) for shard in range(self.header.shards)]
        with ThreadPoolExecutor(_STATS_AT_ONCE) as pool:  # on a network disk a stat is mostly waiting
            shares = [names[k::_STATS_AT_ONCE] for k in range(_STATS_AT_ONCE)]
            found = pool.map(lambda share: [stamp(self.header.kind, root, name) for name in share], shares)
        now = np.empty((len(names), 2), np.int64)
        for k, stamps in enumerate(found):
            now[k::_STATS_AT_ONCE] = [each or (-1, -1) for each in stamps] or np.empty((0, 2))
        then = np.stack([self.shards["size"][:-1], self.shards["mtime_ns"][:-1]], axis=1)
        return [os.fsdecode(names[i]) or "." for i in np.flatnonzero((now != then).any(axis=1))]


def shard_path(kind: str, root: Path, name: bytes) -> str:
    """The file or folder that a shard is: a folder, a .tar, or the data.mdb of an LMDB environment."""
    path = os.path.join(root, os.fsdecode(name)) if name else str(root)
    return os.path.join(path, "data.mdb") if kind == "lmdb" else path


def stamp(kind: str, root: Path, name: bytes) -> tuple[int, int] | None:
    """Size and mtime_ns by which a change of a shard is noticed, None where it is gone.

    A folder's mtime moves when a file is added, renamed or removed; its size is left out, since file systems
    differ in what they mean by it.
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
    """Write an index file to `path`; the bytes depend on nothing but the arguments.

    Args:
        rows: shards in their final order.
        entries: for each of them [n] ENTRY with names counted from 0.
        names: for each of them the bytes of its names; both are iterators, since a set need not fit into
            memory.
    """
    shards = _shard_table(rows)
    shard_names = b"".join(row.name for row in rows)
    name_bytes = sum(row.name_bytes for row in rows)
    header = Header(kind, suffixes, int(shards["first"][-1]), name_bytes, len(rows), len(shard_names))
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


def _read_header(file: BinaryIO, path: Path) -> tuple[Header, int]:
    again = "delete it, and it is built anew"
    try:
        if file.read(len(MAGIC)) != MAGIC:
            raise ValueError("not an index of this version")
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        start = len(MAGIC) + _LENGTH.size + length
        if start > os.stat(path).st_size:
            raise ValueError("the header is cut off")
        header = Header(**json.loads(file.read(length)))
    except (ValueError, TypeError, struct.error) as error:
        raise ValueError(f"{path}: {error}: {again}") from None
    entries, shards = (header.entries + 1) * ENTRY.itemsize, (header.shards + 1) * SHARD.itemsize
    expected = start + entries + header.name_bytes + shards + header.shard_name_bytes
    if os.stat(path).st_size != expected:
        found = os.stat(path).st_size
        raise ValueError(f"{path}: {found} bytes, expected {expected}: {again}")
    return header, start
