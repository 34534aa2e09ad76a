"""A frozen teacher labels the unlabeled images of a store, shard by shard."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from depthany.data.images import decode_image
from depthany.data.left_out import ImageHeader, read_header, require_few
from depthany.data.pseudo_labels.codec import encode_label
from depthany.data.pseudo_labels.shards import NewLabel
from depthany.data.pseudo_labels.store import ShardRange, write_shard
from depthany.data.samples import UnlabeledSet
from depthany.inference.claims import Claims
from depthany.inference.constant_maps import constant_maps
from depthany.inference.labeling_counts import LabelingCounts
from depthany.inference.launched import Pending
from depthany.inference.pipeline import BackgroundPool, Skipped, run_pipeline
from depthany.inference.predictor import Predictor, PreparedImage
from depthany.metrics.constant import is_constant

RESOLUTIONS = ("full", "half")
FEW = 8  # labels of a shard that may all be constant


@dataclass(frozen=True)
class Reading:
    """How images are read; see configs/reading/default.yaml."""

    convert_images: bool
    min_side: int
    unreadable: str
    max_unreadable_share: float


@dataclass(frozen=True)
class ShardPosition:
    """An image of the store: its shard, and its index in its set."""

    shard: ShardRange
    index: int


@dataclass(frozen=True)
class LabelingImage(PreparedImage):
    """An image that was read, its input [3 h w] uint8 RGB."""

    position: ShardPosition


@dataclass
class ShardContent:
    """What a shard is written from; threads may append."""

    labels: list[NewLabel] = field(default_factory=list)
    unreadable: list[tuple[int, str, str]] = field(default_factory=list)  # index, reason, message
    constant: list[str] = field(default_factory=list)  # names of images with a constant label


class Labeler:
    """Labels the shards that it can claim.

    A batch holds images of one shard, so that a label does not depend on which shards a worker happens to
    get.

    Args:
        teacher: the frozen teacher, prepared for inference, with one scale and without flip.
        sets: unlabeled sets by the names in the store's header.
        halve: store labels at half the teacher's resolution, as the mean of 2 x 2 pixels.
        batch_size: images of equal shape that go through the teacher together.
        workers: threads that read, and as many that encode.
        progress: called with the number of images done since its last call.
    """

    def __init__(
        self,
        teacher: Predictor,
        sets: Mapping[str, UnlabeledSet],
        reading: Reading,
        halve: bool,
        batch_size: int,
        workers: int,
        progress: Callable[[int, LabelingCounts], None],
    ) -> None:
        self.teacher, self.sets, self.reading, self.halve = teacher, sets, reading, halve
        self.batch_size, self.workers, self.progress = batch_size, workers, progress
        self.counts = LabelingCounts()
        self._shards = dict[ShardRange, ShardContent]()

    def run(self, store: Path, claims: Claims) -> LabelingCounts:
        """Labels all shards of `claims`; returns the counts of this worker.

        Raises:
            ValueError: an image is unreadable and must not be skipped, too many were skipped, a prediction is
                not finite, or a shard cannot be written.
        """
        try:
            with BackgroundPool(threads=1, pending=1) as writer:
                run_pipeline(
                    self.images(claims),
                    self.read,
                    self.predict,
                    self.encode,
                    batch_size=self.batch_size,
                    threads=self.workers,
                    queue=2 * self.batch_size,
                    skip=self.skip,
                    group_of=lambda image: image.shard,
                    group_done=partial(writer.submit, self.write, store, claims),
                )
        finally:
            claims.release_all()
        return self.counts

    def images(self, claims: Claims) -> Iterator[ShardPosition]:
        """Yields the images of each shard as it is claimed."""
        for shard in claims:
            self._shards[shard] = ShardContent()
            for index in range(shard.first, shard.last):
                yield ShardPosition(shard, index)

    def read(self, position: ShardPosition) -> LabelingImage | Skipped[ShardPosition]:
        """Reads an image and resizes it in 8 bits, as training resizes its views."""
        images, header = self.sets[position.shard.set], ImageHeader()
        preprocessing = self.teacher.model.preprocessing
        name = images.name(position.index)
        try:
            stored = images.stored_image(position.index)
            header = read_header(stored)
            header.require_side(self.reading.min_side, name)
            if isinstance(stored, bytes):
                stored = decode_image(stored, name, self.reading.convert_images)
        except ValueError as error:
            fault = header.fault(self.reading.min_side, self.reading.convert_images)
            return Skipped(position, str(error), fault)
        height, width = stored.shape[:2]
        try:
            h, w = preprocessing.input_shape(height, width, self.teacher.input_size)
        except ValueError as error:
            return Skipped(position, f"{name}: {error}", "too long")
        if (h, w) != (height, width):
            stored = np.asarray(cv2.resize(stored, (w, h), interpolation=cv2.INTER_CUBIC), np.uint8)
        planes = torch.from_numpy(np.ascontiguousarray(stored.transpose(2, 0, 1)))  # [3 h w] uint8
        return LabelingImage(name, (planes,), (height, width), position)

    def predict(self, images: Sequence[LabelingImage]) -> list[Pending]:
        """Begins to predict the labels [h w] of images of equal shapes."""
        pending = self.teacher.launch(images, self.label, self.counts.add_teacher_s)
        self.counts.labels += len(images)
        self.progress(len(images), self.counts)
        return pending

    def label(self, disparity: Tensor, image: PreparedImage) -> Tensor:
        """Returns the label of an image, its disparity [h w] or means of 2 x 2 of it."""
        return F.avg_pool2d(disparity[None, None], 2)[0, 0] if self.halve else disparity

    def encode(self, image: LabelingImage, pending: Pending) -> None:
        """Waits for the label of an image, and encodes it for its shard."""
        disparity = pending.wait()  # [h w]
        coded = encode_label(disparity)
        position = image.position
        if is_constant(disparity):
            self._shards[position.shard].constant.append(image.name)
        self._shards[position.shard].labels.append(NewLabel(position.index, image.size, coded))
        self.counts.add_encoded(len(coded.chunk))

    def skip(self, skipped: Skipped[ShardPosition]) -> None:
        """Notes an image without label.

        Raises:
            ValueError: no image may be skipped, or more were skipped than may be.
        """
        if self.reading.unreadable == "error":
            raise ValueError(f"{skipped.message} (data.unreadable=skip leaves such images out)")
        position = skipped.item
        self._shards[position.shard].unreadable.append((position.index, skipped.reason, skipped.message))
        self.counts.skipped += 1
        done, share = self.counts.labels + self.counts.skipped, self.reading.max_unreadable_share
        require_few(self.counts.skipped, done, share, "unlabeled", f"the last is {skipped.message}")
        self.progress(1, self.counts)

    def write(self, store: Path, claims: Claims, shard: ShardRange) -> None:
        """Writes a shard whose images are all encoded or skipped, and releases it.

        Raises:
            ValueError: it cannot be written, or all its labels, at least `FEW`, are constant.
        """
        content = self._shards.pop(shard)
        constant, labels = content.constant, len(content.labels)
        if labels >= FEW and len(constant) == labels:
            raise ValueError(f"a shard was not written: {constant_maps(constant, labels, 'labels')}")
        if constant:
            print(f"warning: {constant_maps(constant, labels, 'labels of a shard')}", file=sys.stderr)
        self.counts.constant += len(constant)
        write_shard(store, shard, content.labels, content.unreadable)
        self.counts.shards += 1
        claims.release(shard)
