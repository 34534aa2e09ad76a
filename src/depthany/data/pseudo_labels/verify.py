"""Look through a store of pseudo-labels for damage, holes and duplicates; the images are not needed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from depthany.data.pseudo_labels.shards import Shard
from depthany.data.pseudo_labels.store import (
    MANIFEST,
    ShardNote,
    ShardRange,
    checksum,
    read_manifest,
    read_note,
)
from depthany.system.packages import reason


@dataclass(frozen=True)
class Checked:
    """A shard that was looked at: how many labels it has, and what is wrong with it."""

    shard: ShardRange
    labels: int
    problems: list[str]


def verify_shards(store: Path) -> Iterator[Checked]:
    """Every shard of a store, in order: checksum, counts, every image exactly once, every label decoded.

    Raises:
        ValueError: the manifest cannot be read.
    """
    header, manifest = read_manifest(store)
    listed = manifest.get("shards", {})
    for shard in header.shards():
        try:
            note = read_note(store, shard)
        except ValueError as error:
            yield Checked(shard, 0, [str(error)])
            continue
        if note is None:
            yield Checked(shard, 0, [f"{shard.path(store)}: not labeled yet"])
            continue
        problems = list(_problems(store, shard, note))
        told = {"labels": note.labels, "bytes": note.bytes, "blake2b": note.blake2b}
        if manifest["complete"] and listed.get(shard.name) != told:
            problems.append(f"{shard.note_path(store)}: differs from {MANIFEST}")
        yield Checked(shard, note.labels, problems)


def _problems(store: Path, shard: ShardRange, note: ShardNote) -> Iterator[str]:
    path = shard.path(store)
    try:
        content = path.read_bytes()
    except OSError as error:
        yield f"{path}: cannot read the file: {reason(error)}"
        return
    if len(content) != note.bytes:
        yield f"{path}: {len(content)} bytes, expected {note.bytes}"
    elif checksum(content) != note.blake2b:
        yield f"{path}: checksum {checksum(content)}, expected {note.blake2b}"
    try:
        opened = Shard(path)
    except ValueError as error:
        yield str(error)
        return
    yield from _wrong_images(path, shard, opened.index, note)
    for index in np.unique(opened.index):
        try:
            opened.label(int(index))
        except ValueError as error:
            yield str(error)
    opened.close()


def _wrong_images(path: Path, shard: ShardRange, labeled: np.ndarray, note: ShardNote) -> Iterator[str]:
    """Images of a shard that are there twice, missing, or of another shard."""
    if len(labeled) != note.labels:
        yield f"{path}: {len(labeled)} labels, expected {note.labels}"
    found = np.concatenate([labeled, np.array([index for index, _, _ in note.unreadable], np.int64)])
    images, counts = np.unique(found, return_counts=True)
    expected = np.arange(shard.first, shard.last)
    for what, which in (
        ("more than once", images[counts > 1]),
        ("neither labeled nor listed as unreadable", np.setdiff1d(expected, images)),
        ("of another shard", np.setdiff1d(images, expected)),
    ):
        if len(which):
            some = ", ".join(str(index) for index in which[:5])
            yield f"{path}: {len(which)} images {what}: {some}{' ...' if len(which) > 5 else ''}"
