"""Builds the index of a data set with several processes. A build that is killed at any moment can be resumed.

Each scanned shard becomes a part, a file that is written under another name and renamed. The name of a part
is a hash of path, size and mtime of the shard, so a resumed build finds the parts that are done and not
outdated.
"""

import bisect
import functools
import hashlib
import json
import multiprocessing
import os
import queue
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from depthany.data.image_formats import describe_passed_over
from depthany.data.indexed.index_file import ENTRY, NOT_BROKEN, Index, ShardRow, stamp, write_index
from depthany.data.indexed.scan import Scan, first_shards, scan
from depthany.system.files import write_atomically
from depthany.system.plurals import counted
from depthany.system.processes import cores, end_with_parent


@dataclass(frozen=True)
class Job:
    """What to index: see `build_index`."""

    kind: str
    root: Path
    path: Path
    suffixes: tuple[str, ...]

    @property
    def parts(self) -> Path:
        return self.path.with_name(f"{self.path.name}.parts")


@dataclass(frozen=True)
class Part:
    """A scanned shard: its row of the index, the file that holds the scan, and the folders inside."""

    row: ShardRow
    file: Path
    folders: list[bytes]


def build_index(
    kind: str,
    root: Path,
    path: Path,
    suffixes: tuple[str, ...],
    workers: int | None = None,
    expected: int | None = None,
) -> None:
    """Builds the index of a data set, or updates it: unchanged tars and environments are not read again.

    Args:
        kind: folder, tar or lmdb.
        root: folder of the data set.
        path: the index file. Parts of an unfinished build lie beside it, in `<path>.parts`.
        suffixes: endings of file names that count as images, in lower case; empty for LMDB.
        workers: processes; None = one per core that this process may use.
        expected: number of images that the data set should have, for the progress bar.

    Raises:
        ValueError: the data set holds no image, a shard cannot be read, or the index cannot be written.
        OSError: a part cannot be written.
    """
    job = Job(kind, root, path, suffixes)
    job.parts.mkdir(parents=True, exist_ok=True)
    parts = sorted(_scan_all(job, workers, expected), key=lambda part: part.row.name)
    rows, files = [part.row for part in parts], [part.file for part in parts]
    if not any(row.entries for row in rows):
        shutil.rmtree(job.parts)
        ending = f" with suffix {', '.join(suffixes)}" if suffixes else ""
        broken = sum(row.broken_at != NOT_BROKEN for row in rows)
        why = f", {broken} of them broken or not plain tars" if broken else ""
        others = sum((Counter(row.passed_over) for row in rows), Counter[str]())
        why += f"; {describe_passed_over(others)}" if others else ""
        raise ValueError(f"{root}: no image{ending} in {len(parts)} {_noun(kind)}{why}")
    entries, names = map(_part_entries, files), map(_part_names, files)
    write_atomically(path, lambda file: write_index(file, kind, list(suffixes), rows, entries, names))
    shutil.rmtree(job.parts)


def _scan_all(job: Job, workers: int | None, expected: int | None) -> Iterator[Part]:
    """Scans every shard, in any order; the folders inside a folder are shards too."""
    waiting, done = 0, queue.SimpleQueue[Future[Part]]()
    before = set(multiprocessing.active_children())
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    pool = ProcessPoolExecutor(
        workers or cores(),
        multiprocessing.get_context(method),
        initializer=end_with_parent,
    )
    try:
        with _Progress(job, expected) as progress:
            names = first_shards(job.kind, job.root)
            while names or waiting:
                for name in names:
                    pool.submit(_make_part, job, name).add_done_callback(done.put)
                waiting += len(names)
                part = done.get().result()
                waiting, names = waiting - 1, part.folders
                progress.advance(part.row.entries, waiting)
                yield part
        pool.shutdown()
    except BrokenProcessPool:
        raise ValueError(
            f"a process that indexed {job.root} was killed, perhaps because memory ran out: run the same "
            "command again to continue, with fewer processes (python -m depthany.index workers=1 ...)"
        ) from None
    finally:
        with suppress(OSError):  # removes the folder only if there is no part
            job.parts.rmdir()
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()  # even in the middle of a shard
        pool.shutdown(cancel_futures=True)


def _make_part(job: Job, name: bytes) -> Part:
    state = stamp(job.kind, job.root, name)
    if state is None:
        raise ValueError(
            f"{job.root / os.fsdecode(name)}: disappeared while it was indexed: run the command again"
        )
    key = json.dumps([job.kind, job.suffixes, os.fsdecode(name), *state]).encode()
    file = job.parts / hashlib.blake2b(key, digest_size=16).hexdigest()
    if (head := _read_head(file)) is None:
        _write_part(file, _unchanged(job, name, state) or scan(job.kind, job.root, name, job.suffixes))
        head = _read_head(file)
        assert head is not None
    row = ShardRow(name, head.entries, head.name_bytes, *state, head.broken_at, head.passed_over)
    return Part(row, file, head.folders)


def _unchanged(job: Job, name: bytes, state: tuple[int, int]) -> Scan | None:
    """Returns a shard as in an earlier index; None if it has changed.

    Folders are listed again: an index does not know the folders inside.
    """
    old = _earlier(job) if job.kind != "folder" else None
    if old is None:
        return None
    shard = bisect.bisect_left(range(old.header.shards), name, key=old.shard_name)
    if shard == old.header.shards or old.shard_name(shard) != name:
        return None
    row = old.shards[shard]
    if (row["size"], row["mtime_ns"]) != state:
        return None
    entries, names = old.slice(shard)
    others = Counter(old.header.passed_over.get(os.fsdecode(name), {}))
    return Scan(entries, names, broken_at=int(row["broken_at"]), passed_over=others)


@functools.cache
def _earlier(job: Job) -> Index | None:
    try:
        old = Index(job.path) if job.path.exists() else None
    except ValueError:  # damaged, and about to be replaced
        return None
    return old if old and old.is_of(job.kind, job.suffixes) else None


@dataclass(frozen=True)
class _Head:
    """The first line of a part; see `ShardRow` and `Part`."""

    entries: int
    name_bytes: int
    broken_at: int
    folders: list[bytes]
    passed_over: dict[str, int]
    length: int  # of the line


def _write_part(file: Path, found: Scan) -> None:
    """Writes a line of JSON, the entries and the names.

    Without fsync, which would take longer than the scan of a folder.
    """
    folders = [os.fsdecode(folder) for folder in found.folders]
    head = json.dumps([len(found.entries), len(found.names), found.broken_at, folders, found.passed_over])
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    with open(partial, "wb") as out:
        out.write(head.encode() + b"\n" + found.entries.tobytes() + found.names)
    os.replace(partial, file)


def _read_head(file: Path) -> _Head | None:
    """Returns the first line of a part; None if the file does not exist or a power failure truncated it."""
    try:
        with open(file, "rb") as part:
            line = part.readline()
            entries, name_bytes, broken_at, folders, others = json.loads(line)
            size = os.fstat(part.fileno()).st_size
    except (FileNotFoundError, ValueError):
        return None
    if size != len(line) + entries * ENTRY.itemsize + name_bytes:
        return None
    return _Head(entries, name_bytes, broken_at, list(map(os.fsencode, folders)), others, len(line))


def _part_entries(file: Path) -> NDArray[np.void]:
    head = _read_head(file)
    assert head is not None, file
    return np.fromfile(file, ENTRY, head.entries, offset=head.length)


def _part_names(file: Path) -> bytes:
    head = _read_head(file)
    assert head is not None, file
    with open(file, "rb") as part:
        part.seek(head.length + head.entries * ENTRY.itemsize)
        return part.read()


class _Progress:
    """Shows progress on stderr: images found, and known shards that are not read yet."""

    def __init__(self, job: Job, expected: int | None) -> None:
        self.console, self.images, self.shards, self.kind = Console(stderr=True), 0, 0, job.kind
        self.root, self.expected = job.root, expected
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.progress.add_task(f"indexing {job.root.name}", total=expected, state="")

    def __enter__(self) -> "_Progress":
        self.began = self.printed = time.monotonic()
        self.progress.start()
        return self

    def __exit__(self, error: object, *_: object) -> None:
        self.progress.stop()
        if error is None:
            self._say(f"indexed {self.root}: {self.state(0)}, {time.monotonic() - self.began:.1f} s")

    def advance(self, images: int, waiting: int) -> None:
        """Counts one more shard with `images` images; `waiting` shards are known and not read yet."""
        self.images, self.shards = self.images + images, self.shards + 1
        self.progress.update(self.task, completed=self.images, state=self.state(waiting))
        if not self.console.is_terminal and time.monotonic() - self.printed > 30:  # a line in a log file
            self.printed = time.monotonic()
            self._say(f"indexing {self.root}: {self.state(waiting)}")

    def state(self, waiting: int) -> str:
        """Returns the counts so far, as text."""
        left = f", {waiting} to go" if waiting else ""
        of = f" of about {self.expected}" if self.expected and waiting else ""
        return f"{counted(self.images, 'image')}{of} in {self.shards} {_noun(self.kind)}{left}"

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _noun(kind: str) -> str:
    return {"folder": "folders", "tar": "tars", "lmdb": "LMDB environments"}[kind]
