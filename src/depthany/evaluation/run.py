"""THE loop of evaluation: scores the images of a set, read ahead of the model and scored behind it.

Used by `python -m depthany.evaluate` and by the validation of a training run. The result does not depend on
the number of threads or processes, or on their order, and on the batch size only by rounding.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from depthany.data.samples import Point, UnknownUnit
from depthany.data.targets import Labels
from depthany.evaluation import protocol as protocols
from depthany.evaluation.alignment_groups import AlignmentGroups
from depthany.evaluation.blocks import cut_into_blocks
from depthany.evaluation.class_scores import require_classes, score_classes
from depthany.evaluation.predictors import FolderPredictor, MissingPrediction, ScoredPredictor, space_of
from depthany.evaluation.score import Row, score_pairs, score_together, select
from depthany.evaluation.stored_sizes import shown_part
from depthany.inference.canonical import at_camera_of
from depthany.inference.pipeline import Skipped, run_pipeline
from depthany.inference.predictor import Predictor, PreparedImage
from depthany.metrics.crops import INPUT_CROPS
from depthany.models.infer import resize_map
from depthany.system.distributed import ALONE, Processes
from depthany.system.packages import MissingPackage

MISSING, UNREADABLE = "without prediction", "unreadable"  # reasons for which an image is skipped


class UnreadableImage(ValueError):
    """An image, or its ground truth, cannot be read; names the file."""


class ScoredSet(Protocol):
    """A set that can be scored; `read` returns a `LabeledSample`, in an ordinal task an `OrdinalSample`."""

    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def read(self, index: int, convert_images: bool = False) -> Any: ...


@dataclass
class Scored:
    """The scores of a set, in the order of its images.

    Attributes:
        rows: rows of the images that count.
        empty: names of images without a pixel (or pair) that counts.
        degenerate: names of images whose ground truth says nothing; see `metrics.align.is_degenerate`.
        missing: names of images without prediction.
        unreadable: one line per unreadable image, which names it.
    """

    rows: list[Row] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    degenerate: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class EvaluationImage(PreparedImage):
    """An image that was read, with its ground truth; its `size` is that of the ground truth.

    Attributes:
        index: index of the image in its set.
        pixels: [h w 3] uint8 RGB as the predictor sees it.
        labels: the true depth or classes; None in an ordinal task.
        scene: type of scene, in an ordinal task.
        pairs: (nearer, farther) points, in an ordinal task.
    """

    index: int
    pixels: NDArray[np.uint8]
    labels: Labels | None = None
    scene: str = ""
    pairs: Sequence[tuple[Point, Point]] = ()


@dataclass
class RankResult:
    """What one process has found, in no particular order; threads may append."""

    rows: list[Row] = field(default_factory=list)
    skipped: list[Skipped[int]] = field(default_factory=list)


def score_set(
    predictor: ScoredPredictor,
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
    """Scores every image of a set, or those at `indices`.

    Args:
        batch_size: images of equal input shape that go through the model together. In float32 it changes a
            prediction only by rounding.
        workers: threads that read, and as many that score.
        convert_images: accept gray, RGBA, CMYK and 16-bit images.
        skip_unreadable: leave out and list images that cannot be read, instead of stopping.
        tick: called when this process is done with an image.
        processes: they share the images. All of them call this function and get the whole result, which is
            equal to that of one process, bit for bit.

    Raises:
        UnreadableImage: an image or its ground truth cannot be read, and must not be skipped.
        ValueError: a file of predictions is unusable or has another shape than its image, a prediction is not
            finite, or the protocol needs another quantity, or another camera, than the predictor's.
    """
    protocol.require_fits(space_of(predictor), predictor.label)
    if protocol.task == "classes":
        require_classes(predictor.quantity, dataset, predictor.label)
    predictor = at_camera_of(predictor, dataset, protocol.name, protocol.align == "none")
    predictor = predictor.for_protocol(protocol.name, protocol.model_input)
    names = {index: dataset.name(index) for index in (range(len(dataset)) if indices is None else indices)}
    groups = AlignmentGroups(names, protocol)
    blocks = cut_into_blocks(names, batch_size, groups.key)[processes.rank :: processes.size]

    def read(index: int) -> EvaluationImage | Skipped[int]:
        return read_one(predictor, dataset, protocol, index, convert_images, skip_unreadable)

    result = score_blocks(predictor, protocol, blocks, read, groups, batch_size, workers, tick)
    return merged(names, processes.gather(result))


def score_blocks(
    predictor: ScoredPredictor,
    protocol: protocols.Protocol,
    blocks: Sequence[Sequence[int]],
    read: Callable[[int], EvaluationImage | Skipped[int]],
    groups: AlignmentGroups,
    batch_size: int,
    workers: int,
    tick: Callable[[], object],
) -> RankResult:
    """Scores the images of blocks; no batch crosses the end of a block. See `score_set`."""
    result, space = RankResult(), space_of(predictor)
    classes = len(predictor.quantity.class_names)
    block_of = {index: number for number, block in enumerate(blocks) for index in block}

    def predict(images: Sequence[EvaluationImage]) -> Iterator[NDArray[np.float32]]:
        return predict_at_truth(predictor, images, protocol)

    def finish(image: EvaluationImage, prediction: NDArray[np.float32]) -> None:
        result.rows.extend(score_one(image, prediction, space, protocol, groups, classes))
        tick()

    def skip(skipped: Skipped[int]) -> None:
        result.skipped.append(skipped)
        members = groups.add(skipped.item, None)  # it may be the last one that its sequence waits for
        result.rows.extend(score_together(members, space, protocol))
        tick()

    run_pipeline(
        block_of,
        read,
        predict,
        finish,
        batch_size=batch_size,
        threads=workers,
        skip=skip,
        group_of=block_of.__getitem__,
    )
    return result


def merged(names: Mapping[int, str], results: Sequence[RankResult]) -> Scored:
    """Returns the results of all processes as one, in the order of the images.

    Args:
        names: names of all images, by index.
    """
    rows = sorted((row for result in results for row in result.rows), key=lambda row: row.index)
    skipped = sorted((each for result in results for each in result.skipped), key=lambda each: each.item)
    accounted = {row.index for row in rows} | {each.item for each in skipped}
    return Scored(
        [row for row in rows if not row.is_degenerate],
        degenerate=[row.name for row in rows if row.is_degenerate],
        empty=[names[index] for index in sorted(names.keys() - accounted)],
        missing=[names[each.item] for each in skipped if each.reason == MISSING],
        unreadable=[each.message for each in skipped if each.reason == UNREADABLE],
    )


def read_one(
    predictor: ScoredPredictor,
    dataset: ScoredSet,
    protocol: protocols.Protocol,
    index: int,
    convert_images: bool = False,
    skip_unreadable: bool = False,
) -> EvaluationImage | Skipped[int]:
    """Reads an image and its ground truth, crops both as the protocol says, and prepares the image."""
    name = dataset.name(index)
    try:
        sample = dataset.read(index, convert_images)
    except MissingPackage:  # this is not a bad file: no image is skipped for it
        raise
    except ValueError as error:
        if not skip_unreadable or isinstance(error, UnknownUnit | MissingPackage):
            raise UnreadableImage(str(error)) from None
        return Skipped(index, f"{name}: {error}", UNREADABLE)
    pixels, labels, box = sample.image, None, None
    if protocol.task != "ordinal":
        pixels, labels, box = _cropped(name, pixels, sample.labels, protocol)
    try:
        inputs = predictor.prepare(pixels, name)
    except MissingPrediction as missing:
        return Skipped(index, f"{name}: no {missing}", MISSING)
    if isinstance(predictor, FolderPredictor):
        inputs = (shown_part(inputs[0], pixels.shape[:2], sample.image.shape[:2], box, name),)
    size = pixels.shape[:2] if labels is None else labels.mask.shape
    scene, pairs = (sample.scene, sample.pairs) if labels is None else ("", ())
    return EvaluationImage(name, inputs, (size[0], size[1]), index, pixels, labels, scene, pairs)


def _cropped(
    name: str, pixels: NDArray[np.uint8], labels: Labels, protocol: protocols.Protocol
) -> tuple[NDArray[np.uint8], Labels, tuple[slice, slice] | None]:
    """Crops image and ground truth before the model sees them; returns the box too, None for no crop."""
    if protocol.input_crop == "none":
        return pixels, labels, None
    if pixels.shape[:2] != labels.mask.shape:
        raise ValueError(
            f"{name}: input_crop={protocol.input_crop} crops image and ground truth alike, but they are "
            f"{pixels.shape[:2]} and {labels.mask.shape}"
        )
    try:
        box = INPUT_CROPS[protocol.input_crop](*labels.mask.shape)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return pixels[box], labels.map(lambda plane: plane[box]), box


def predict_at_truth(
    predictor: ScoredPredictor, images: Sequence[EvaluationImage], protocol: protocols.Protocol
) -> Iterator[NDArray[np.float32]]:
    """Yields the prediction [h w] of each image of a batch, at the size of its ground truth; of classes their
    numbers.
    """
    if protocol.task == "classes":
        assert isinstance(predictor, Predictor), "folders of predictions hold no classes"
        yield from predictor.predict_resized(images)
        return
    mode, align_corners = protocols.UPSAMPLES[protocol.upsample]
    for values, image in zip(predictor.predict(images), images, strict=True):
        yield resize_map(values, image.size, mode, align_corners).cpu().numpy()


def score_one(
    image: EvaluationImage,
    prediction: NDArray[np.float32],
    space: str,
    protocol: protocols.Protocol,
    groups: AlignmentGroups,
    classes: int = 0,
) -> list[Row]:
    """Returns the row of an image, or those of its sequence if the image completes it.

    Args:
        prediction: [h w] at the size of the ground truth.
        space: space of the prediction, disparity, depth or classes.
        classes: how many there are.
    """
    if image.labels is None:
        if not image.pairs:
            return []
        return [score_pairs(prediction, space, image.pairs, protocol, image.scene, image.index, image.name)]
    if protocol.task == "classes":
        row = score_classes(prediction, image.labels, classes, protocol.metrics, image.index, image.name)
        return [] if row is None else [row]
    truth, mask = image.labels.disparity, image.labels.mask
    try:
        pixels = select(prediction, space, truth, mask, protocol, image.index, image.name)
    except ValueError as error:
        raise ValueError(f"{image.name}: {error}") from None
    return score_together(groups.add(image.index, pixels), space, protocol)
