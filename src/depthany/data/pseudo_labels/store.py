"""The store of a teacher's labels: HDF5 shards, and a manifest that says what they were made from.

    manifest.json                    teacher, preprocessing, data sets; when complete counts and checksums
    unreadable.txt                   when complete: images without label, one per line, with the reason
    shards/<set>-<first image>.h5    labels of `shard_size` images, from the first one on
    shards/<set>-<first image>.json  its `ShardRecord`, written last: a shard with a record is done

A shard depends only on images, teacher and preprocessing, so a second attempt writes the same bytes.
"""

import hashlib
import json
import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depthany.data.pseudo_labels.shards import SHARD_FORMAT, SHARD_VERSION, Label, NewLabel, Shard, shard_file
from depthany.system.files import write_atomically
from depthany.system.packages import reason

FORMAT, VERSION = SHARD_FORMAT, SHARD_VERSION
MANIFEST, UNREADABLE = "manifest.json", "unreadable.txt"
RESIZE = "uint8 cubic, shorter side to input_size, sides to multiples of 14"
_OPEN_SHARDS = 8  # per process


@dataclass(frozen=True)
class StoreSettings:
    """What the labels of a store depend on. Two runs with equal settings make the same store.

    teacher: hash of the weights, and arguments of the model.
    preprocessing: how an image becomes the teacher's input, and the output a label.
    shard_size: images in a shard.
    sets: by name, number of `images` and `identity` of each unlabeled data set.
    """

    teacher: dict[str, Any]
    preprocessing: dict[str, Any]
    shard_size: int
    sets: dict[str, dict[str, Any]]

    def shards(self) -> list["ShardRange"]:
        """Returns all shards, in order."""
        return [
            ShardRange(name, first, min(first + self.shard_size, entry["images"]))
            for name, entry in self.sets.items()
            for first in range(0, entry["images"], self.shard_size)
        ]


@dataclass(frozen=True)
class ShardRange:
    """A shard: images `first` to `last` - 1 of a data set."""

    set: str
    first: int
    last: int

    @property
    def name(self) -> str:
        return f"{self.set}-{self.first:010d}"

    def path(self, store: Path) -> Path:
        """Returns the path of its labels."""
        return store / "shards" / f"{self.name}.h5"

    def record_path(self, store: Path) -> Path:
        """Returns the path of its record. A shard is done if its record exists."""
        return store / "shards" / f"{self.name}.json"


@dataclass(frozen=True)
class ShardRecord:
    """The record of a shard that is done.

    labels: number of images with label.
    bytes, blake2b: size and checksum of its file.
    unreadable: index, reason in a few words, and message of each image without label.
    """

    labels: int
    bytes: int
    blake2b: str
    unreadable: list[tuple[int, str, str]]


def write_shard(
    store: Path, shard: ShardRange, labels: Sequence[NewLabel], unreadable: Sequence[tuple[int, str, str]]
) -> ShardRecord:
    """Writes a shard, then its record, each atomically. The bytes depend only on the arguments.

    Raises:
        ValueError: it cannot be written.
    """
    content = shard_file(sorted(labels, key=lambda label: label.index))
    write_atomically(shard.path(store), lambda partial: partial.write_bytes(content))
    record = ShardRecord(len(labels), len(content), checksum(content), sorted(unreadable))
    write_json(shard.record_path(store), asdict(record))
    return record


def read_record(store: Path, shard: ShardRange) -> ShardRecord | None:
    """Returns the record of a shard; None if it is not done."""
    path = shard.record_path(store)
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["unreadable"] = [tuple(row) for row in content["unreadable"]]
        return ShardRecord(**content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({reason(error)}): delete it, and label again") from None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file atomically."""
    text = json.dumps(content, indent=1) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def describe_sets(sets: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns number of images and identity of each unlabeled data set, by name."""
    for name in sets:
        if not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(
                f"data.unlabeled.{name}: expected letters, digits, _ - . in the name, which is used for files"
            )
    return {name: {"images": len(data), "identity": data.identity()} for name, data in sets.items()}


def begin_store(store: Path, settings: StoreSettings, remedy: str = "pass another out=...") -> None:
    """Begins a store, or checks that the existing one has the same settings.

    Args:
        remedy: what else helps if the settings differ, besides going on with those of the store.

    Raises:
        ValueError: the settings differ (all differences are named), or the store cannot be written.
    """
    if not (store / MANIFEST).exists():
        about = {"format": FORMAT, "version": VERSION, **asdict(settings), "complete": False}
        write_json(store / MANIFEST, about)
    began, _ = read_manifest(store)
    if changed := differences(asdict(began), asdict(settings), "began with", "now"):
        raise ValueError(
            f"{store} is a store of other labels ({'; '.join(changed)}): continue with its settings, or "
            f"{remedy}"
        )


def read_manifest(store: Path) -> tuple[StoreSettings, dict[str, Any]]:
    """Returns the settings and the whole manifest of a store.

    Raises:
        ValueError: there is no store, or it is damaged or of another version.
    """
    path = store / MANIFEST
    if not path.is_file():
        raise ValueError(f"no store of pseudo-labels at {store}: {MANIFEST} is missing")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["format"], content["version"]
        settings = StoreSettings(
            *(content[key] for key in ("teacher", "preprocessing", "shard_size", "sets"))
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a manifest of a store, or damaged: {reason(error)}") from None
    if version != (FORMAT, VERSION):
        raise ValueError(f"{path}: {version[0]} {version[1]}, expected {FORMAT} {VERSION}")
    return settings, content


def finish_store(store: Path) -> dict[str, Any] | None:
    """Completes the manifest from all records, and returns it; returns None if a shard is not done.

    Two workers may do this at once: they write the same.
    """
    settings, content = read_manifest(store)
    records = {shard: read_record(store, shard) for shard in settings.shards()}
    if not all(records.values()):
        return None
    done = {shard: record for shard, record in records.items() if record is not None}
    shards = {
        shard.name: {"labels": record.labels, "bytes": record.bytes, "blake2b": record.blake2b}
        for shard, record in done.items()
    }
    lines = [
        f"{shard.set}\t{index}\t{why}\t{message}\n"
        for shard, record in done.items()
        for index, why, message in record.unreadable
    ]
    totals = {"labels": sum(record.labels for record in done.values()), "unreadable": len(lines)}
    totals |= {"bytes": sum(record.bytes for record in done.values())}
    text = "".join(lines).encode("utf-8", "surrogateescape")
    write_atomically(store / UNREADABLE, lambda partial: partial.write_bytes(text))
    for lock in (store / "shards").glob("*.lock"):  # of workers that were killed after their last write
        lock.unlink(missing_ok=True)
    content |= {"complete": True, **totals, "shards": shards}
    write_json(store / MANIFEST, content)
    return content


def differences(first: Mapping[str, Any], second: Mapping[str, Any], then: str, now: str) -> list[str]:
    """Returns what differs in two nested mappings, as in "preprocessing.input_size: began with 28, now
    42".
    """
    mine, other = dict(_leaves(first)), dict(_leaves(second))
    return [
        f"{key}: {then} {mine.get(key)}, {now} {other.get(key)}"
        for key in sorted(mine.keys() | other.keys())
        if mine.get(key) != other.get(key)
    ]


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def checksum(content: bytes | memoryview) -> str:
    """Returns the BLAKE2b hash of 16 bytes, in hexadecimal."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


class PseudoLabels:
    """The labels of a store, found by number of the data set and index of the image.

    It must be complete when a label is read. Each process opens shards itself, and keeps the last ones open.

    Args:
        store: folder of the store.
        sets: names of the unlabeled data sets of the run, in order.
    """

    def __init__(self, store: Path, sets: Sequence[str]) -> None:
        self.store, self.sets = store, list(sets)
        self._reset()

    @cached_property
    def settings(self) -> StoreSettings:
        """What the labels depend on."""
        return read_manifest(self.store)[0]

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._open: OrderedDict[Path, Shard] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"store": self.store, "sets": self.sets}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["store"], state["sets"])  # type: ignore[misc]

    def of_image(self, part: int, index: int, size: tuple[int, int]) -> NDArray[np.float32] | None:
        """Returns the disparity [h w], of any scale and shift, of image `index` of data set `part`; None if
        the image could not be labeled.

        Args:
            size: height and width of the image.

        Raises:
            ValueError: a shard is damaged, or the label was made when the image had another size.
        """
        label, name = self.read(part, index), self.sets[part]
        if label is not None and label.image_size != size:
            (height, width), (h, w) = size, label.image_size
            raise ValueError(
                f"image {index} of {name} has {width}x{height} pixels, but had {w}x{h} when {self.store} "
                "was made: label again"
            )
        return None if label is None else label.disparity

    def read(self, part: int, index: int) -> Label | None:
        """Returns the label of image `index` of data set `part`; None if the image could not be labeled.

        Raises:
            ValueError: a shard is damaged.
        """
        if self._pid != os.getpid():
            self._reset()  # HDF5's handles must not be used after a fork
        first = index - index % self.settings.shard_size
        path = ShardRange(self.sets[part], first, first).path(self.store)
        if path not in self._open:
            if len(self._open) >= _OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
            self._open[path] = Shard(path)
        self._open.move_to_end(path)
        return self._open[path].label(index)
