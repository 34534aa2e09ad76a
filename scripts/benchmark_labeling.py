"""How much of the bare teacher's rate is left for labeling: `python scripts/benchmark.py labeling`.

Labeling reads, decodes and resizes JPEGs, predicts, compresses, and writes shards, as `depthany.pseudo_label`
does; the bare teacher predicts batches of the same shape from memory. Both alternate in one process, in an
order that rotates, on photographs of 1000 x 750 that the script draws into a temporary folder. Weights are
random, since the time does not depend on them. The result is the ratio within a round; that of CPU times does
not depend on other load.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from depthany.data.pseudo_labels.store import StoreSettings, begin_store, finish_store
from depthany.data.unlabeled import FolderImages
from depthany.inference.claims import Claims
from depthany.inference.labeling import Labeler, Reading
from depthany.inference.labeling_counts import LabelingCounts
from depthany.inference.predictor import Predictor
from depthany.models.fast import prepare_for_inference
from depthany.models.model import DenseModel, depth_anything
from depthany.system.device import keep_freed_memory

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ALL_UNLABELED = 62e6  # images of the paper


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `benchmark.py labeling`."""
    parser.add_argument("--encoder", default="vits", help="size (default vits)")
    parser.add_argument("--size", type=int, default=518, help="pixels of the shorter side (default 518)")
    parser.add_argument("--batch", type=int, default=8, help="images of a batch (default 8)")
    parser.add_argument("--images", type=int, default=48, help="labeled in a round (default 48)")
    parser.add_argument("--workers", type=int, default=2, help="threads that read and that write (default 2)")
    parser.add_argument("--threads", type=int, help="CPU threads of the teacher (default one per core)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default 5)")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")


def run(arguments: argparse.Namespace) -> None:
    """Prints every round and the median."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(1)
    keep_freed_memory()
    torch.manual_seed(0)
    model = depth_anything(arguments.encoder).to(arguments.device)
    model = prepare_for_inference(model, DTYPES[arguments.dtype])
    with tempfile.TemporaryDirectory() as folder:
        draw_photos(Path(folder) / "images", arguments.images)
        measure(model, Path(folder), arguments)


def draw_photos(folder: Path, count: int) -> None:
    """Writes JPEGs of 1000 x 750 with structure at several scales and 100 to 200 kB, as photographs have."""
    folder.mkdir()
    for i in range(count):
        draw, photo = np.random.default_rng(i), np.zeros((750, 1000, 3), np.float32)
        for side, strength in ((4, 90), (32, 40), (256, 25)):
            noise = draw.standard_normal((side, side, 3), np.float32) * strength
            photo += cv2.resize(noise, (1000, 750), interpolation=cv2.INTER_CUBIC)
        pixels = np.clip(photo + 127, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{i:05d}.jpg"), pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])


def measure(model: DenseModel, folder: Path, arguments: argparse.Namespace) -> None:
    """Runs both alternately and prints their rates."""
    shape = (arguments.batch, 3, *model.preprocessing.input_shape(750, 1000, arguments.size))
    batch = torch.randint(0, 256, shape, dtype=torch.uint8, device=arguments.device)
    images, rounds = FolderImages(str(folder / "images")), list[tuple[float, float]]()
    labels_per_s = list[float]()

    def bare() -> None:
        with torch.inference_mode():
            for _ in range(arguments.images // arguments.batch):
                image = model.preprocessing.normalise(batch)
                model(image.to(next(model.parameters()).dtype)).map.float().numpy()

    stores = iter(range(10**6))

    def labeling() -> None:
        label(model, images, folder / f"store_{next(stores)}", arguments)

    bare()  # warms up
    for number in range(arguments.rounds):
        order = [("bare", bare), ("labeling", labeling)][:: 1 if number % 2 else -1]
        took = {name: timed(work) for name, work in order}
        wall, cpu = (took["bare"][i] / took["labeling"][i] for i in (0, 1))
        rounds.append((wall, cpu))
        rates = ", ".join(f"{name} {arguments.images / seconds:.2f}/s" for name, (seconds, _) in took.items())
        print(f"round {number + 1}: {rates}; {wall:.1%} of the bare rate, by CPU time {cpu:.1%}", flush=True)
        labels_per_s.append(arguments.images / took["labeling"][0])
    walls, cpus = zip(*rounds)
    rate = statistics.median(labels_per_s)
    print(f"{rate:.2f} labels/s: {ALL_UNLABELED / rate / 3600:,.0f} hours for the paper's 62 million images")
    print(f"median: {statistics.median(walls):.1%}, by CPU time {statistics.median(cpus):.1%}")


def label(
    model: DenseModel, images: FolderImages, store: Path, arguments: argparse.Namespace
) -> LabelingCounts:
    """Labels all images into a new store and completes it."""
    header = StoreSettings({}, {}, 500, {"photos": {"images": len(images), "identity": images.identity()}})
    begin_store(store, header)
    reading, teacher = Reading(False, 1, "error", 0.05), Predictor(model, arguments.size)
    labeler = Labeler(
        teacher, {"photos": images}, reading, False, arguments.batch, arguments.workers, lambda *_: None
    )
    counts = labeler.run(store, Claims(store, header))
    assert finish_store(store) is not None and counts.labels == len(images)
    return counts


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Returns wall seconds and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu
