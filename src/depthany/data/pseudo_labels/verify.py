"""Checks a store of pseudo-labels for damage, missing and duplicate labels. The images are not needed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from depthany.data.pseudo_labels.shards import Shard
from depthany.data.pseudo_labels.store import (
    MANIFEST,
    ShardRange,
    ShardRecord,
    checksum,
    read_manifest,
    read_record,
)
from depthany.system.packages import reason
from depthany.system.plurals import counted


@dataclass(frozen=True)
class CheckedShard:
    """Number of labels of a shard, and what is wrong with it."""

    shard: ShardRange
    labels: int
    problems: list[str]


def verify_shards(store: Path) -> Iterator[CheckedShard]:
    """Checks every shard of a store, in order: checksum, counts, every image exactly once, every label
    decodes.

    Raises:
        ValueError: the manifest cannot be read.
    """
    settings, manifest = read_manifest(store)
    listed = manifest.get("shards", {})
    for shard in settings.shards():
        try:
            record = read_record(store, shard)
        except ValueError as error:
            yield CheckedShard(shard, 0, [str(error)])
            continue
        if record is None:
            yield CheckedShard(shard, 0, [f"{shard.path(store)}: not labeled yet"])
            continue
        problems = list(_problems(store, shard, record))
        recorded = {"labels": record.labels, "bytes": record.bytes, "blake2b": record.blake2b}
        if manifest["complete"] and listed.get(shard.name) != recorded:
            problems.append(f"{shard.record_path(store)}: differs from {MANIFEST}")
        yield CheckedShard(shard, record.labels, problems)


def _problems(store: Path, shard: ShardRange, record: ShardRecord) -> Iterator[str]:
    """Yields what is wrong with a shard that has a record."""
    path = shard.path(store)
    try:
        content = path.read_bytes()
    except OSError as error:
        yield f"{path}: cannot read the file: {reason(error)}"
        return
    if len(content) != record.bytes:
        yield f"{path}: {len(content)} bytes, expected {record.bytes}"
    elif checksum(content) != record.blake2b:
        yield f"{path}: checksum {checksum(content)}, expected {record.blake2b}"
    try:
        opened = Shard(path)
    except ValueError as error:
        yield str(error)
        return
    yield from _wrong_images(path, shard, opened.index, record)
    for index in np.unique(opened.index):
        try:
            opened.label(int(index))
        except ValueError as error:
            yield str(error)
    opened.close()


def _wrong_images(path: Path, shard: ShardRange, labeled: np.ndarray, record: ShardRecord) -> Iterator[str]:
    """Yields which images are in a shard twice, are missing, or belong to another shard."""
    if len(labeled) != record.labels:
        yield f"{path}: {counted(len(labeled), 'label')}, expected {record.labels}"
    found = np.concatenate([labeled, np.array([index for index, _, _ in record.unreadable], np.int64)])
    images, counts = np.unique(found, return_counts=True)
    expected = np.arange(shard.first, shard.last)
    for what, which in (
        ("more than once", images[counts > 1]),
        ("neither labeled nor listed as unreadable", np.setdiff1d(expected, images)),
        ("of another shard", np.setdiff1d(images, expected)),
    ):
        if len(which):
            some = ", ".join(str(index) for index in which[:5])
            yield f"{path}: {counted(len(which), 'image')} {what}: {some}{' ...' if len(which) > 5 else ''}"
