"""Photos through the model: some are read while others are predicted and others written."""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depthany.data.images import read_image
from depthany.display.progress import Bar
from depthany.inference.outputs import FORMATS, WITH_IMAGE, Meaning, write
from depthany.inference.pipeline import Behind, batches_of_equal, map_ahead
from depthany.inference.predictor import Predictor
from depthany.inference.sources import Source
from depthany.inference.tally import Tally


@dataclass(frozen=True)
class Job:
    """A source, and the file of each format that it is to become."""

    source: Source
    targets: dict[str, Path]


@dataclass(frozen=True)
class Ready:
    """A photo that was read and prepared.

    Attributes:
        inputs: [3 h w] for each scale.
        size: height and width of the photo.
        image: [height width 3] uint8 RGB, kept where a format shows it.
    """

    job: Job
    inputs: list[Tensor]
    size: tuple[int, int]
    image: NDArray[np.uint8] | None


def still_job(source: Source, save: Sequence[str], out: Path, overwrite: bool) -> Job:
    """The files that a photo is to become; none, if all of them are there and not to be overwritten."""
    paths = {name: out / (source.name + FORMATS[name][0]) for name in save}
    return Job(source, {name: path for name, path in paths.items() if overwrite or not path.exists()})


def predict_stills(
    jobs: Sequence[Job],
    predictor: Predictor,
    meaning: Meaning,
    batch_size: int,
    workers: int,
    bar: Bar,
    tally: Tally,
) -> None:
    """Predict and write every photo that can be read.

    Memory is bounded: at most 4 batches and `workers` photos at any time.

    Args:
        batch_size: photos of equal shape that go through the model together.
        workers: threads that read, and as many that write.

    Raises:
        ValueError: a file cannot be written, or memory is not enough.
    """

    def readable() -> Generator[Ready, None, None]:
        with closing(map_ahead(lambda job: _read(job, predictor), jobs, workers, batch_size)) as photos:
            for photo in photos:
                if isinstance(photo, Ready):
                    yield photo
                else:
                    tally.unreadable.append(photo)
                    bar.advance()

    with closing(readable()) as photos, Behind(workers, batch_size) as writers:
        for batch in batches_of_equal(photos, _shapes, batch_size):
            values = predictor.predict([photo.inputs for photo in batch])
            maps = predictor.resize(values, [photo.size for photo in batch])
            for photo, each in zip(batch, maps, strict=True):
                writers.submit(_write, photo, each, meaning, bar, tally)


def _shapes(photo: Ready) -> tuple[torch.Size, ...]:
    return tuple(each.shape for each in photo.inputs)


def _read(job: Job, predictor: Predictor) -> Ready | str:
    try:
        image = read_image(job.source.path, convert=True)
    except ValueError as error:
        return str(error)
    try:
        inputs = predictor.prepare(image)
    except ValueError as error:
        return f"{job.source.path}: {error}"
    keeps = any(name in WITH_IMAGE for name in job.targets)
    return Ready(job, inputs, (image.shape[0], image.shape[1]), image if keeps else None)


def _write(photo: Ready, values: NDArray[np.float32], meaning: Meaning, bar: Bar, tally: Tally) -> None:
    write(photo.job.targets, photo.image, values, meaning)
    tally.done.append(photo.job.source.path)
    bar.advance()
