"""The store of a teacher's labels: HDF5 shards, and a manifest that says whose labels they are.

    <store>/manifest.json                    teacher, preprocessing, image sets; in the end counts, checksums
    <store>/unreadable.txt                   at the end: images without label, one a line, with the reason
    <store>/shards/<set>-<first image>.h5    labels of `shard_size` images from there on
    <store>/shards/<set>-<first image>.json  its `ShardNote`, written after it: a shard with a note is done

A shard depends on nothing but images, teacher and preprocessing, so that a second try writes the same bytes.
"""

import hashlib
import json
import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
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
class StoreHeader:
    """What the labels of a store depend on; two runs with equal headers make the same store.

    teacher: hash of its weights and arguments of its model.
    preprocessing: how an image becomes the teacher's input, and its output a label.
    shard_size: images of a shard.
    sets: by name, number of `images` and `identity` of each unlabeled set.
    """

    teacher: dict[str, Any]
    preprocessing: dict[str, Any]
    shard_size: int
    sets: dict[str, dict[str, Any]]

    def shards(self) -> list["ShardRange"]:
        """All shards, in order."""
        return [
            ShardRange(name, first, min(first + self.shard_size, entry["images"]))
            for name, entry in self.sets.items()
            for first in range(0, entry["images"], self.shard_size)
        ]


@dataclass(frozen=True)
class ShardRange:
    """Images `first` to `last` - 1 of a set."""

    set: str
    first: int
    last: int

    @property
    def name(self) -> str:
        return f"{self.set}-{self.first:010d}"

    def path(self, store: Path) -> Path:
        """Where its labels lie."""
        return store / "shards" / f"{self.name}.h5"

    def note_path(self, store: Path) -> Path:
        """Where its note lies; a shard that has one is done."""
        return store / "shards" / f"{self.name}.json"


@dataclass(frozen=True)
class ShardNote:
    """What is known of a shard that is done.

    labels: number of images with label. bytes, blake2b: of its file.
    unreadable: of every image without label its index, the reason in a few words, and the message.
    """

    labels: int
    bytes: int
    blake2b: str
    unreadable: list[tuple[int, str, str]]


def write_shard(
    store: Path, shard: ShardRange, labels: Sequence[NewLabel], unreadable: Sequence[tuple[int, str, str]]
) -> ShardNote:
    """Write a shard and then its note, each whole or not at all; the bytes follow from the arguments.

    Raises:
        ValueError: it cannot be written.
    """
    content = shard_file(sorted(labels, key=lambda label: label.index))
    write_atomically(shard.path(store), lambda partial: partial.write_bytes(content))
    note = ShardNote(len(labels), len(content), checksum(content), sorted(unreadable))
    write_json(shard.note_path(store), asdict(note))
    return note


def read_note(store: Path, shard: ShardRange) -> ShardNote | None:
    """The note of a shard, None where it is not done."""
    path = shard.note_path(store)
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["unreadable"] = [tuple(each) for each in content["unreadable"]]
        return ShardNote(**content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({reason(error)}): delete it, and label again") from None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    text = json.dumps(content, indent=1) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def describe_sets(sets: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Number of images and identity of unlabeled sets, by name."""
    for name in sets:
        if not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(
                f"data.unlabeled.{name}: a name of letters, digits, _ - . is needed: files get it"
            )
    return {name: {"images": len(each), "identity": each.identity()} for name, each in sets.items()}


def begin_store(store: Path, header: StoreHeader) -> None:
    """Begin a store, or make sure that the one that is there is the same one.

    Raises:
        ValueError: it is not, and each difference is named; or it cannot be written.
    """
    if not (store / MANIFEST).exists():
        about = {"format": FORMAT, "version": VERSION, **asdict(header), "complete": False}
        write_json(store / MANIFEST, about)
    began, _ = read_manifest(store)
    if changed := differences(asdict(began), asdict(header), "began with", "now"):
        raise ValueError(
            f"{store} is a store of other labels ({'; '.join(changed)}): label with its own settings to "
            "continue, or pass another out=..."
        )


def read_manifest(store: Path) -> tuple[StoreHeader, dict[str, Any]]:
    """Header and whole manifest of a store.

    Raises:
        ValueError: there is none, or it is damaged or of another version.
    """
    path = store / MANIFEST
    if not path.is_file():
        raise ValueError(f"no store of pseudo-labels at {store}: {MANIFEST} is missing")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["format"], content["version"]
        header = StoreHeader(*(content[key] for key in ("teacher", "preprocessing", "shard_size", "sets")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no manifest of a store, or damaged: {reason(error)}") from None
    if version != (FORMAT, VERSION):
        raise ValueError(f"{path}: {version[0]} {version[1]}, expected {FORMAT} {VERSION}")
    return header, content


def finish_store(store: Path) -> dict[str, Any] | None:
    """Gather all notes into the manifest, once every shard is done; None if one is not.

    Two workers may do so at once: they write the same.
    """
    header, content = read_manifest(store)
    notes = {shard: read_note(store, shard) for shard in header.shards()}
    if not all(notes.values()):
        return None
    known = {shard: note for shard, note in notes.items() if note is not None}
    shards = {
        shard.name: {"labels": note.labels, "bytes": note.bytes, "blake2b": note.blake2b}
        for shard, note in known.items()
    }
    lines = [
        f"{s.set}\t{i}\t{why}\t{message}\n" for s, n in known.items() for i, why, message in n.unreadable
    ]
    totals = {"labels": sum(n.labels for n in known.values()), "unreadable": len(lines)}
    totals |= {"bytes": sum(n.bytes for n in known.values())}
    text = "".join(lines).encode("utf-8", "surrogateescape")
    write_atomically(store / UNREADABLE, lambda partial: partial.write_bytes(text))
    for lock in (store / "shards").glob("*.lock"):  # of workers that were killed after their last write
        lock.unlink(missing_ok=True)
    content |= {"complete": True, **totals, "shards": shards}
    write_json(store / MANIFEST, content)
    return content


def differences(first: Mapping[str, Any], second: Mapping[str, Any], then: str, now: str) -> list[str]:
    """What differs between two nested mappings, such as "preprocessing.input_size: began with 28, now 42"."""
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
    return hashlib.blake2b(content, digest_size=16).hexdigest()


class PseudoLabels:
    """Labels of a complete store by position of their set in a run and index in it.

    Each process opens shards of its own, the ones read last stay open.

    Args:
        store: folder of the store.
        sets: names of the unlabeled sets of the run, in order.
    """

    def __init__(self, store: Path, sets: Sequence[str]) -> None:
        self.store, self.sets = store, list(sets)
        self.header, _ = read_manifest(store)
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._open: OrderedDict[Path, Shard] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"store": self.store, "sets": self.sets}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["store"], state["sets"])  # type: ignore[misc]

    def of_image(self, part: int, index: int, size: tuple[int, int]) -> NDArray[np.float32] | None:
        """The disparity [h w] of image `index` of the set at position `part`, at any scale and shift; None
        where the image could not be labeled.

        Args:
            size: height and width of the image.

        Raises:
            ValueError: a shard is damaged, or the label is of an image of another size.
        """
        label, name = self.read(part, index), self.sets[part]
        if label is not None and label.image_size != size:
            (height, width), (h, w) = size, label.image_size
            raise ValueError(
                f"image {index} of {name} has {width}x{height} pixels, and had {w}x{h} when {self.store} "
                "was made: label again"
            )
        return None if label is None else label.disparity

    def read(self, part: int, index: int) -> Label | None:
        """The label of image `index` of the set at position `part`; None where it could not be labeled.

        Raises:
            ValueError: a shard is damaged.
        """
        if self._pid != os.getpid():
            self._reset()  # HDF5's handles are not to be shared with the process that was forked
        first = index - index % self.header.shard_size
        path = ShardRange(self.sets[part], first, first).path(self.store)
        if path not in self._open:
            if len(self._open) >= _OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
            self._open[path] = Shard(path)
        self._open.move_to_end(path)
        return self._open[path].label(index)
