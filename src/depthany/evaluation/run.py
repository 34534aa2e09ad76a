"""THE loop of evaluation: images are read ahead of the model and scored behind it, in threads.

Used for the validation of a training run and for `python -m depthany.evaluate`. The result does not depend on
the number of threads or processes, or on which of them is first; on the batch size by rounding alone.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from threading import Lock
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depthany.data.targets import Labels
from depthany.evaluation import protocol as protocols
from depthany.evaluation.blocks import cut
from depthany.evaluation.predictors import MissingPrediction, Predictor, resize
from depthany.evaluation.score import Pixels, Row, score_pairs, score_together, select
from depthany.inference.pipeline import Behind, batches_of_equal, map_ahead
from depthany.metrics.crops import INPUT_CROPS
from depthany.system.distributed import ALONE, Processes


class UnreadableImage(ValueError):
    """An image, or its truth, cannot be read; names the file."""


class PairsSample(Protocol):
    """An image with pairs of points, the nearer and the farther, each (row, column)."""

    @property
    def name(self) -> str: ...
    @property
    def scene(self) -> str: ...
    @property
    def image(self) -> NDArray[np.uint8]: ...
    @property
    def pairs(self) -> Sequence[tuple[tuple[int, int], tuple[int, int]]]: ...


class ScoredSet(Protocol):
    """What can be scored; `read` gives a `LabeledSample`, or a `PairsSample` where the task is ordinal."""

    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def read(self, index: int, convert_images: bool = False) -> Any: ...


@dataclass
class Scored:
    """What came out of a set, all in its order.

    Attributes:
        rows: of the images that counted.
        empty: names of images without a pixel (or pair) that counts.
        missing: names of images without prediction. unreadable: a line for each, which names it.
    """

    rows: list[Row] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Ready:
    """An image that was read: what the predictor needs of it, and the truth. size: [height width] of it.

    image: [h w 3] uint8 RGB as the predictor sees it.
    """

    index: int
    name: str
    image: NDArray[np.uint8]
    prepared: Tensor
    size: tuple[int, int]
    labels: Labels | None = None
    scene: str = ""
    pairs: Sequence[tuple[tuple[int, int], tuple[int, int]]] = ()


@dataclass(frozen=True)
class Left:
    """An image that is left out; `line` says which, and why."""

    index: int
    missing: bool
    line: str


@dataclass
class Part:
    """What one process has found, in the order in which it came; threads may append."""

    rows: list[Row] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)


class Groups:
    """Images that share a fit wait here for each other; threads may call it.

    Args:
        names: by index, of all images that will be added or dropped.
    """

    def __init__(self, names: Mapping[int, str], protocol: protocols.Protocol) -> None:
        self._names, self._whole_sequence = names, protocol.align_per == "sequence"
        self._open = Counter(self.key(index) for index in names)
        self._waiting: dict[Hashable, list[Pixels]] = defaultdict(list)
        self._lock = Lock()

    def name(self, index: int) -> str:
        """Of the sequence (folder) of an image, or of the image."""
        return self._names[index].rpartition("/")[0] if self._whole_sequence else self._names[index]

    def key(self, index: int) -> Hashable:
        """Of the group of an image."""
        return self.name(index) if self._whole_sequence else index

    def add(self, index: int, pixels: Pixels | None) -> list[Pixels]:
        """All members of the group if this (None: dropped) is the last of it, else nothing."""
        with self._lock:
            key = self.key(index)
            if pixels is not None:
                self._waiting[key].append(pixels)
            self._open[key] -= 1
            return [] if self._open[key] else self._waiting.pop(key, [])


def score_set(
    predictor: Predictor,
    dataset: ScoredSet,
    protocol: protocols.Protocol,
    indices: Sequence[int] | None = None,
    batch_size: int = 8,
    workers: int = 2,
    convert_images: bool = False,
    skip_unreadable: bool = False,
    tick: Callable[[], object] = lambda: None,
    processes: Processes = ALONE,
) -> Scored:
    """Score every image of a set, or those at `indices`.

    Args:
        batch_size: images of equal model-input shape that go through the model together. In float32 that
            changes a prediction by rounding alone.
        workers: threads that read, and as many that score.
        convert_images: accept gray, RGBA, CMYK and 16-bit images.
        skip_unreadable: leave out, and list, images that cannot be read instead of stopping.
        tick: called when an image is done by this process.
        processes: that share the images; all of them call this, and all get the whole result, which is that
            of one process to the bit.

    Raises:
        UnreadableImage: an image or its truth cannot be read, and must not be skipped.
        ValueError: a file of predictions is unusable, a prediction is not finite, or the protocol does not
            take what the predictor gives.
    """
    protocol.require_fits(predictor.quantity, predictor.label)
    names = {index: dataset.name(index) for index in (range(len(dataset)) if indices is None else indices)}
    groups = Groups(names, protocol)
    blocks = cut(names, batch_size, groups.key)[processes.rank :: processes.size]

    def read(index: int) -> Ready | Left:
        return read_one(predictor, dataset, protocol, index, convert_images, skip_unreadable)

    part = score_blocks(predictor, protocol, blocks, read, groups, batch_size, workers, tick)
    return merged(names, processes.gather(part))


def score_blocks(
    predictor: Predictor,
    protocol: protocols.Protocol,
    blocks: Sequence[Sequence[int]],
    read: Callable[[int], Ready | Left],
    groups: Groups,
    batch_size: int,
    workers: int,
    tick: Callable[[], object],
) -> Part:
    """Score the images of some blocks; see `score_set`."""
    part = Part()
    block_of = {index: number for number, block in enumerate(blocks) for index in block}

    def finish(ready: Ready, prediction: NDArray[np.float32]) -> None:
        part.rows.extend(score_one(ready, prediction, predictor.quantity, protocol, groups))
        tick()

    def leave(out: Left) -> None:
        part.left.append(out)
        members = groups.add(out.index, None)  # the last that the others of its sequence have waited for
        part.rows.extend(score_together(members, predictor.quantity, protocol, groups.name(out.index)))
        tick()

    def readable() -> Generator[Ready, None, None]:
        with closing(map_ahead(read, block_of, workers, batch_size)) as images:
            for image in images:
                if isinstance(image, Ready):
                    yield image
                else:
                    leave(image)

    with closing(readable()) as images, Behind(workers, batch_size) as scorers:
        for _, block in groupby(images, lambda each: block_of[each.index]):
            for batch in batches_of_equal(block, lambda each: predictor.key(each.prepared), batch_size):
                for ready, prediction in zip(batch, predict(predictor, batch, protocol), strict=True):
                    scorers.submit(finish, ready, prediction)
    return part


def merged(names: Mapping[int, str], parts: Sequence[Part]) -> Scored:
    """The parts of all processes as one result; names: of all images, by index."""
    rows = sorted((row for part in parts for row in part.rows), key=lambda row: row.index)
    left = sorted((out for part in parts for out in part.left), key=lambda out: out.index)
    told = {row.index for row in rows} | {out.index for out in left}
    return Scored(
        rows,
        empty=[names[index] for index in sorted(names.keys() - told)],
        missing=[out.line for out in left if out.missing],
        unreadable=[out.line for out in left if not out.missing],
    )


def read_one(
    predictor: Predictor,
    dataset: ScoredSet,
    protocol: protocols.Protocol,
    index: int,
    convert_images: bool = False,
    skip_unreadable: bool = False,
) -> Ready | Left:
    """Read an image and its truth, cut both as the protocol says, and prepare it for the predictor."""
    name = dataset.name(index)
    try:
        sample = dataset.read(index, convert_images)
    except ValueError as error:
        if not skip_unreadable:
            raise UnreadableImage(str(error)) from None
        return Left(index, False, f"{name}: {error}")
    image, labels = sample.image, None
    if protocol.task == "depth":
        image, labels = _cut(name, image, sample.labels, protocol)
    try:
        prepared = predictor.prepare(name, image, protocol)
    except MissingPrediction:
        return Left(index, True, name)
    if labels is not None:
        return Ready(index, name, image, prepared, _size(labels.mask), labels)
    return Ready(index, name, image, prepared, _size(image), None, sample.scene, sample.pairs)


def _size(array: NDArray) -> tuple[int, int]:
    return array.shape[0], array.shape[1]


def _cut(
    name: str, image: NDArray[np.uint8], labels: Labels, protocol: protocols.Protocol
) -> tuple[NDArray[np.uint8], Labels]:
    """Image and truth as they are cut before the model sees them."""
    if protocol.input_crop == "none":
        return image, labels
    if image.shape[:2] != labels.mask.shape:
        raise ValueError(
            f"{name}: input_crop={protocol.input_crop} cuts image and truth alike, and they are "
            f"{image.shape[:2]} and {labels.mask.shape}"
        )
    try:
        box = INPUT_CROPS[protocol.input_crop](*labels.mask.shape)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return image[box], labels.map(lambda plane: plane[box])


@torch.inference_mode()
def predict(
    predictor: Predictor, batch: Sequence[Ready], protocol: protocols.Protocol
) -> Iterator[NDArray[np.float32]]:
    """The prediction [h w] of each image of a batch, at the size of its truth."""
    maps = predictor.predict([each.prepared for each in batch])
    for ready, values in zip(batch, maps, strict=True):
        resized = resize(values, ready.size, protocol.upsample)
        if not torch.isfinite(resized).all():
            raise ValueError(
                f"{ready.name}: the prediction of {predictor.label} is not finite: try precision=fp32"
            )
        yield resized.cpu().numpy()


def score_one(
    ready: Ready,
    prediction: NDArray[np.float32],
    quantity: str,
    protocol: protocols.Protocol,
    groups: Groups,
) -> list[Row]:
    """Rows of an image, or of all its sequence if the others have waited for it alone."""
    if ready.labels is None:
        if not ready.pairs:
            return []
        return [score_pairs(prediction, quantity, ready.pairs, ready.scene, ready.index, ready.name)]
    truth, mask = ready.labels.disparity, ready.labels.mask
    try:
        pixels = select(prediction, quantity, truth, mask, protocol, ready.index, ready.name)
    except ValueError as error:
        raise ValueError(f"{ready.name}: {error}") from None
    return score_together(groups.add(ready.index, pixels), quantity, protocol, groups.name(ready.index))
