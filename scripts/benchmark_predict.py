"""How much of the bare model's rate is left when photos are read, resized and written as well.

    python scripts/benchmark_predict.py --photos 200 --encoder vits

Writes JPEGs of two shapes into a temporary folder. In each round a part of them goes through the model alone,
from inputs in memory, and from file to file as `python -m depthany.predict` does it. Which of the two comes
first alternates, and the ratio is taken within a round, so that other load on the machine affects both. CPU
seconds are printed too: where the model keeps every core busy, they are the cost of reading and writing. The
weights are random, since the time does not depend on them.

Measured on two cores that other work shared: 200 photos of 1600x1200, vits at 518 in bf16, 93 % of the bare
model's rate (5 rounds, 93 to 111 %). Outside the model such a photo costs about 0.05 s of one core; one of
4000x3000 costs about 0.4 s, so its share is larger unless the model runs on other cores or a GPU.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from depthany.display.progress import Bar
from depthany.inference.outputs import FORMATS, OutputSettings
from depthany.inference.photos import PhotoJob, predict_photos
from depthany.inference.prediction_counts import PredictionCounts
from depthany.inference.predictor import Predictor, PreparedImage
from depthany.inference.sources import Source
from depthany.models.fast import prepare_for_inference
from depthany.models.model import depth_anything
from depthany.system.device import choose_amp, choose_device, keep_freed_memory


@dataclass(frozen=True)
class Cost:
    """Seconds per photo: wall time, and CPU time of all cores together."""

    wall: float
    cpu: float


def timed(work: Callable[[], object], photos: int) -> Cost:
    """Returns the cost of a call per photo."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Cost((time.perf_counter() - wall) / photos, (time.process_time() - cpu) / photos)


def write_photos(folder: Path, count: int, width: int, height: int) -> list[Source]:
    """Writes JPEGs of smooth shapes with some grain, every fourth of them upright."""
    draw, sources = np.random.default_rng(0), []
    for i in range(count):
        size = (height, width) if i % 4 == 3 else (width, height)
        coarse = draw.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
        grain = draw.integers(-6, 7, smooth.shape, dtype=np.int16)
        path = folder / f"{i:04d}.jpg"
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(path, quality=90)
        sources.append(Source(path, path.stem))
    return sources


def bare(predictor: Predictor, sources: Sequence[Source], batch_size: int) -> Cost:
    """Returns the cost of the model alone: inputs are prepared before, and outputs are dropped."""
    groups: dict[tuple[torch.Size, ...], list[PreparedImage]] = {}
    for source in sources:
        pixels = np.asarray(Image.open(source.path))
        inputs = predictor.prepare(pixels, source.name)
        image = PreparedImage(source.name, inputs, (pixels.shape[0], pixels.shape[1]))
        groups.setdefault(image.shapes, []).append(image)

    def run() -> None:
        for group in groups.values():
            for start in range(0, len(group), batch_size):
                predictor.predict(group[start : start + batch_size]).cpu()

    return timed(run, len(sources))


def file_to_file(
    predictor: Predictor,
    sources: Sequence[Source],
    save: Sequence[str],
    out: Path,
    batch_size: int,
    workers: int,
) -> Cost:
    """Returns the cost from opening the first file to writing the last one."""
    endings = {name: FORMATS[name][0] for name in save}
    jobs = [PhotoJob(source.path, source.targets(endings, out, overwrite=True)) for source in sources]
    counts, settings = PredictionCounts(), OutputSettings(predictor.quantity)

    def run() -> None:
        with Bar("photos", len(jobs)) as bar:
            predict_photos(jobs, predictor, settings, batch_size, workers, bar, counts)

    cost = timed(run, len(jobs))
    assert len(counts.done) == len(jobs)
    return cost


def measure(arguments: argparse.Namespace, folder: Path) -> list[tuple[Cost, Cost]]:
    """Returns the costs of the model alone and of file to file, by round."""
    predictor = build_predictor(arguments)
    width, height = (int(side) for side in arguments.size.split("x"))
    sources = write_photos(folder / "photos", arguments.photos, width, height)
    batch_size, out = arguments.batch_size, folder / "out"
    bare(predictor, sources[: 4 * batch_size], batch_size)  # warms up
    found = []
    for k in range(arguments.rounds):
        part = sources[k * len(sources) // arguments.rounds : (k + 1) * len(sources) // arguments.rounds]
        if k % 2 == 0:
            alone = bare(predictor, part, batch_size)
        files = file_to_file(predictor, part, arguments.save, out, batch_size, arguments.workers)
        if k % 2 == 1:
            alone = bare(predictor, part, batch_size)
        found.append((alone, files))
        print(
            f"round {k + 1}: model {alone.wall:.3f} s ({alone.cpu:.3f} CPU), "
            f"file to file {files.wall:.3f} s ({files.cpu:.3f} CPU) a photo",
            flush=True,
        )
    return found


def build_predictor(arguments: argparse.Namespace) -> Predictor:
    """Returns the predictor of `depthany.predict`, with random weights."""
    device = choose_device(arguments.device)
    torch.manual_seed(0)
    dtype = choose_amp(arguments.precision, device) or torch.float32
    model = prepare_for_inference(depth_anything(arguments.encoder).to(device), dtype)
    return Predictor(model, arguments.input_size)


def spread(ratios: Sequence[float]) -> str:
    """Returns the text "median (smallest to largest)"."""
    return f"{statistics.median(ratios):.1%} ({min(ratios):.1%} to {max(ratios):.1%})"


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="vits")
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--size", default="1600x1200", help="width x height of the photos")
    parser.add_argument("--input-size", type=int, default=518)
    parser.add_argument("--save", nargs="+", default=["color"])
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "photos").mkdir()
        found = measure(arguments, Path(folder))
    print(
        f"{arguments.photos} photos of {arguments.size}, {arguments.encoder} at {arguments.input_size} in "
        f"{arguments.precision}, {torch.get_num_threads()} threads, saving {' '.join(arguments.save)}:"
    )
    print(f"rate, of the bare model's: {spread([alone.wall / files.wall for alone, files in found])}")
    print(f"CPU time, the bare model's share: {spread([alone.cpu / files.cpu for alone, files in found])}")


if __name__ == "__main__":
    main()
