"""The frozen teacher labels a mixture shard by shard, while other images are read, coded and written.

Workers, on one machine or on several with a shared folder, take shards by file locks. The system gives up the
lock of a process that was killed, so that no clock decides who is dead.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from depthany.data.images import decode_image
from depthany.data.left_out import ImageHeader, read_header
from depthany.data.pseudo_labels.codec import encode_label
from depthany.data.pseudo_labels.shards import NewLabel
from depthany.data.pseudo_labels.store import ShardRange, StoreSettings, write_shard
from depthany.data.samples import UnlabeledSet
from depthany.inference.pipeline import Behind, batches_of_equal, map_ahead
from depthany.models.preprocess import input_shape, normalise

RESOLUTIONS = ("full", "half")


@dataclass(frozen=True)
class Reading:
    """How images are read; see configs/reading/default.yaml.

    input_size: pixels of the shorter side as the teacher sees it.
    """

    input_size: int
    convert_images: bool
    min_side: int
    unreadable: str
    max_unreadable_share: float


@dataclass(frozen=True)
class Ready:
    """An image as the teacher takes it, [3 h w] uint8, or why there is none."""

    shard: ShardRange
    index: int
    image: Tensor | None
    image_size: tuple[int, int] = (0, 0)
    fault: str = ""
    message: str = ""


@dataclass
class Tally:
    """What workers have done: images labeled and left out, bytes written, seconds within the teacher."""

    labels: int = 0
    left_out: int = 0
    shards: int = 0
    teacher_s: float = 0.0
    workers: int = 1
    began: float = field(default_factory=time.monotonic)
    _coded: int = 0
    _bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add_bytes(self, count: int) -> None:
        """Another label was coded; threads may call it."""
        with self._lock:
            self._coded, self._bytes = self._coded + 1, self._bytes + count

    def bytes_per_label(self) -> float:
        """Mean bytes of the labels so far."""
        return self._bytes / max(self._coded, 1)

    def rate(self) -> float:
        """Labels a second since the start."""
        return self.labels / max(time.monotonic() - self.began, 1e-9)

    def projection(self, images: int = 62_000_000) -> str:
        """Space and time that so many images would take at the rate and size so far."""
        gigabytes = self.bytes_per_label() * images / 1e9
        hours = images / max(self.rate(), 1e-9) / 3600
        who = "one such worker" if self.workers == 1 else f"{self.workers} such workers together"
        return f"{images / 1e6:.0f}M images: {gigabytes:,.0f} GB, {hours:,.0f} hours of {who}"

    def counts(self) -> dict[str, float]:
        """All that adds up over workers."""
        names = ("labels", "left_out", "shards", "teacher_s", "workers", "_coded", "_bytes")
        return {name: getattr(self, name) for name in names}

    def of_all(self, counts: Sequence[Mapping[str, Any]]) -> "Tally":
        """The tally of several workers that began when this one did, itself among them."""
        return Tally(**{name: sum(each[name] for each in counts) for name in counts[0]}, began=self.began)


class Claims:
    """Shards of a store that are to be labeled by this process, and the locks on them.

    Attributes:
        held_by_others: shards that another worker has in hand.
    """

    def __init__(self, store: Path, header: StoreSettings) -> None:
        self.store, self.shards, self.held_by_others = store, header.shards(), 0
        self._locks: dict[ShardRange, FileLock] = {}
        (store / "shards").mkdir(parents=True, exist_ok=True)
        done = {path.name for path in (store / "shards").glob("*.json")}
        self.open = [shard for shard in self.shards if shard.record_path(store).name not in done]

    def __iter__(self) -> Iterator[ShardRange]:
        for shard in self.open:
            if self._take(shard):
                yield shard

    def _take(self, shard: ShardRange) -> bool:
        path = shard.record_path(self.store)
        if path.exists():
            return False
        lock = FileLock(
            path.with_suffix(".lock"), timeout=0, thread_local=False
        )  # a thread that writes releases it
        try:
            lock.acquire()
        except Timeout:
            self.held_by_others += 1
            return False
        except NotImplementedError:
            raise ValueError(
                f"{path.parent}: this disk has no file locks: label into a folder that has"
            ) from None
        self._locks[shard] = lock
        if path.exists():  # done between the look and the lock
            self.release(shard)
            return False
        return True

    def release(self, shard: ShardRange) -> None:
        """Let go of a shard that is done."""
        lock = self._locks.pop(shard)
        Path(lock.lock_file).unlink(missing_ok=True)  # whoever waits for it finds the note
        lock.release()

    def give_up(self) -> None:
        """Let go of all that is held and not done."""
        for lock in self._locks.values():
            lock.release()
        self._locks.clear()


class Labeler:
    """Labels the shards that it can claim.

    A batch is of one shard, so that a label does not depend on which shards a worker happens to get.

    Args:
        model: the frozen teacher, prepared for inference.
        sets: unlabeled sets by the names in the store's header.
        halve: store labels at half the teacher's resolution, the mean of 2 x 2 pixels.
        batch_size: images of equal shape that go through the teacher together.
        workers: threads that read, and as many that code.
        tell: called with the number of images that were done.
    """

    def __init__(
        self,
        model: nn.Module,
        sets: Mapping[str, UnlabeledSet],
        reading: Reading,
        halve: bool,
        batch_size: int,
        workers: int,
        tell: Callable[[int, Tally], None],
    ) -> None:
        self.model, self.sets, self.reading, self.halve = model, sets, reading, halve
        self.batch_size, self.workers, self.tell, self.tally = batch_size, workers, tell, Tally()

    def run(self, store: Path, claims: Claims) -> Tally:
        """Label all shards of `claims`.

        Raises:
            ValueError: an image cannot be read and must be, too many cannot, a prediction is not finite, or
                a shard cannot be written.
        """
        items = ((shard, index) for shard in claims for index in range(shard.first, shard.last))
        ahead = 2 * self.batch_size + self.workers
        try:
            with (
                closing(map_ahead(lambda item: self.read(*item), items, self.workers, ahead)) as photos,
                Behind(1, 1) as writer,
            ):
                for shard, members in groupby(photos, key=lambda photo: photo.shard):
                    labels, left_out = self._label_shard(members)
                    writer.submit(self._write, store, claims, shard, labels, left_out)
        finally:
            claims.give_up()
        return self.tally

    def _label_shard(self, photos: Iterator[Ready]) -> tuple[list[NewLabel], list[tuple[int, str, str]]]:
        labels, left_out = list[NewLabel](), list[tuple[int, str, str]]()

        def readable() -> Generator[Ready, None, None]:
            for photo in photos:
                if photo.image is not None:
                    yield photo
                    continue
                left_out.append((photo.index, photo.fault, photo.message))
                self._leave_out(photo)

        def code(photo: Ready, disparity: NDArray[np.float32]) -> None:
            coded = encode_label(disparity)
            labels.append(NewLabel(photo.index, photo.image_size, coded))
            self.tally.add_bytes(len(coded.chunk))

        with Behind(self.workers, 2 * self.batch_size) as coders:
            for batch in batches_of_equal(readable(), _shape, self.batch_size):
                for photo, disparity in zip(batch, self.predict(batch), strict=True):
                    coders.submit(code, photo, disparity)
                self.tally.labels += len(batch)
                self.tell(len(batch), self.tally)
        return labels, left_out

    def _leave_out(self, photo: Ready) -> None:
        if self.reading.unreadable == "error":
            raise ValueError(f"{photo.message} (data.unreadable=skip leaves such images out)")
        self.tally.left_out += 1
        done, share = self.tally.labels + self.tally.left_out, self.reading.max_unreadable_share
        if self.tally.left_out > share * max(done, 200):
            raise ValueError(
                f"{self.tally.left_out} of {done} images could not be read, more than "
                f"data.max_unreadable_share={share:g} of them (or of the first 200); the last is "
                f"{photo.message}"
            )
        self.tell(1, self.tally)

    def _write(
        self,
        store: Path,
        claims: Claims,
        shard: ShardRange,
        labels: list[NewLabel],
        left_out: list[tuple[int, str, str]],
    ) -> None:
        write_shard(store, shard, labels, left_out)
        self.tally.shards += 1
        claims.release(shard)

    def read(self, shard: ShardRange, index: int) -> Ready:
        """Image `index` of a set, resized in 8 bits as the views of training are."""
        images, header, size = self.sets[shard.set], ImageHeader(), self.reading.input_size
        name = images.name(index)
        try:
            stored = images.stored_image(index)
            header = read_header(stored)
            header.require_side(self.reading.min_side, name)
            if isinstance(stored, bytes):
                stored = decode_image(stored, name, self.reading.convert_images)
        except ValueError as error:
            fault = header.fault(self.reading.min_side, self.reading.convert_images)
            return Ready(shard, index, None, fault=fault, message=str(error))
        height, width = stored.shape[:2]
        try:
            h, w = input_shape(height, width, size)
        except ValueError as error:
            return Ready(shard, index, None, fault="too long", message=f"{name}: {error}")
        if (h, w) != (height, width):
            stored = np.asarray(cv2.resize(stored, (w, h), interpolation=cv2.INTER_CUBIC), np.uint8)
        planes = torch.from_numpy(np.ascontiguousarray(stored.transpose(2, 0, 1)))
        return Ready(shard, index, planes, (height, width))

    @torch.inference_mode()
    def predict(self, photos: list[Ready]) -> NDArray[np.float32]:
        """The labels [b h w] of images of one shape.

        Raises:
            ValueError: a prediction is not finite.
        """
        began = time.monotonic()
        batch = torch.stack([photo.image for photo in photos if photo.image is not None])  # [b 3 h w] uint8
        weights = next(self.model.parameters())
        disparity = self.model(normalise(batch.to(weights.device)).to(weights.dtype)).float()  # [b h w]
        if self.halve:
            disparity = F.avg_pool2d(disparity[:, None], 2)[:, 0]
        maps = disparity.cpu().numpy()
        self.tally.teacher_s += time.monotonic() - began
        for photo, values in zip(photos, maps, strict=True):
            if not np.isfinite(values).all():
                name = self.sets[photo.shard.set].name(photo.index)
                raise ValueError(f"{name}: the teacher's prediction is not finite: try precision=fp32")
        return maps


def _shape(photo: Ready) -> torch.Size:
    assert photo.image is not None
    return photo.image.shape
