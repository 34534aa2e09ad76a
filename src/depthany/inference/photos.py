"""Photos from files to files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from depthany.data.images import read_image
from depthany.display.progress import Bar
from depthany.inference.launched import Pending
from depthany.inference.outputs import CLOUDS, WITH_IMAGE, OutputSettings, write
from depthany.inference.pipeline import Skipped, run_pipeline
from depthany.inference.prediction_counts import PredictionCounts
from depthany.inference.predictor import Predictor, PreparedImage


@dataclass(frozen=True)
class PhotoJob:
    """A photo, and the file to write for each format."""

    path: Path
    targets: dict[str, Path]


@dataclass(frozen=True)
class PreparedPhoto(PreparedImage):
    """A photo that was read.

    Attributes:
        pixels: [height width 3] uint8 RGB, kept if a format shows it.
    """

    job: PhotoJob
    pixels: NDArray[np.uint8] | None


def predict_photos(
    jobs: Sequence[PhotoJob],
    predictor: Predictor,
    settings: OutputSettings,
    batch_size: int,
    workers: int,
    bar: Bar,
    counts: PredictionCounts,
) -> None:
    """Predicts and writes every photo that can be read.

    Memory is bounded: at most 4 batches and `workers` photos at any time.

    Args:
        batch_size: photos of equal input shape that go through the model together.
        workers: threads that read, and as many that write.

    Raises:
        ValueError: a file cannot be written, or memory is not enough.
    """

    def read(job: PhotoJob) -> PreparedPhoto | Skipped[PhotoJob]:
        try:
            pixels = read_image(job.path, convert=True)
            inputs = predictor.prepare(pixels, str(job.path))
        except ValueError as error:
            return Skipped(job, str(error))
        size = pixels.shape[0], pixels.shape[1]
        is_shown = any(name in WITH_IMAGE for name in job.targets)
        return PreparedPhoto(str(job.path), inputs, size, job, pixels if is_shown else None)

    def skip(skipped: Skipped[PhotoJob]) -> None:
        counts.unreadable.append(skipped.message)
        bar.advance()

    def finish(photo: PreparedPhoto, pending: Pending) -> None:
        values = pending.wait()
        write(photo.job.targets, photo.pixels, values, settings)
        if not settings.is_of_classes:  # a photo of one class is no fault
            counts.add_map(photo.job.path.name, values)
        if "png16" in photo.job.targets:
            counts.add_png16(photo.job.path.name, values, settings)
        if any(name in CLOUDS for name in photo.job.targets):
            counts.add_cloud(photo.job.path.name, values, settings)
        counts.done.append(photo.job.path)
        bar.advance()

    run_pipeline(
        jobs, read, predictor.launch_resized, finish, batch_size=batch_size, threads=workers, skip=skip
    )
