"""How much of an evaluation is spent outside the model: random weights, synthetic images and depth as PNG.

    python scripts/benchmark_evaluate.py                            # 32 images of 640x480, ViT-S at 518
    python scripts/benchmark_evaluate.py --images 654 --threads 2

Prints the time of the whole scoring loop, that inside the model's forward pass, and the share of the rest.
Reading and scoring run in threads beside the model. With --threads 1 the same is printed in CPU seconds,
which do not depend on that overlap or on other load.
"""

import argparse
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from depthany.data.folder_depth import FolderDepth
from depthany.evaluation.protocol import Protocol
from depthany.evaluation.results import summary, uncertainty
from depthany.evaluation.run import score_set
from depthany.inference.predictor import Predictor
from depthany.models.fast import prepare_for_inference
from depthany.models.model import depth_anything
from depthany.system.device import keep_freed_memory


class ForwardTimer:
    """Adds up the time of a model's forward passes, in seconds by the clock and of CPU time."""

    def __init__(self, model: nn.Module) -> None:
        self.seconds = self.cpu = 0.0
        model.register_forward_pre_hook(self._begin)
        model.register_forward_hook(self._end)

    def _begin(self, *_: object) -> None:
        self._began, self._began_cpu = time.perf_counter(), time.thread_time()

    def _end(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began
        self.cpu += time.thread_time() - self._began_cpu


def write_pairs(root: Path, count: int, height: int, width: int) -> None:
    """Writes smooth textured images, and 16-bit depth in mm of 1 to 9 m of which a tenth is unknown."""
    for folder in ("images", "depth"):
        (root / folder).mkdir()
    for i in range(count):
        draw = np.random.default_rng(i)
        coarse = draw.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
        image = np.clip(image + draw.normal(0, 4, image.shape), 0, 255).astype(np.uint8)
        depth = cv2.resize(draw.uniform(1000, 9000, (12, 16)), (width, height))
        depth[draw.random((height, width)) < 0.1] = 0
        cv2.imwrite(str(root / "images" / f"{i:04d}.png"), image)
        cv2.imwrite(str(root / "depth" / f"{i:04d}.png"), depth.astype(np.uint16))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--model", default="vits")
    parser.add_argument("--input-size", type=int, default=518)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=None, help="CPU threads of the model")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(1)
    keep_freed_memory()
    torch.manual_seed(0)
    model = prepare_for_inference(depth_anything(arguments.model))
    timed, predictor = ForwardTimer(model), Predictor(model, arguments.input_size)
    protocol = Protocol("benchmark", crop="eigen_nyu" if tuple(arguments.size) == (480, 640) else "none")
    with tempfile.TemporaryDirectory() as folder:
        write_pairs(Path(folder), arguments.images, *arguments.size)
        dataset = FolderDepth(folder, depth_scale=1000, max_depth=10)
        score_set(predictor, dataset, protocol, range(min(2, arguments.images)), arguments.batch_size)
        timed.seconds = timed.cpu = 0.0
        began, cpu = time.perf_counter(), time.process_time()
        workers, batch_size = arguments.workers, arguments.batch_size
        rows = score_set(predictor, dataset, protocol, None, batch_size, workers).rows
        summary(rows, protocol)
        uncertainty(rows, protocol)
        whole, cpu = time.perf_counter() - began, time.process_time() - cpu
    print(
        f"{arguments.model} at {arguments.input_size}, {arguments.images} images of "
        f"{arguments.size[1]}x{arguments.size[0]}, {torch.get_num_threads()} threads: {whole:.2f} s, "
        f"{timed.seconds:.2f} s of it in the model, {100 * (1 - timed.seconds / whole):.1f} % outside"
    )
    if torch.get_num_threads() == 1:
        outside = cpu - timed.cpu
        print(
            f"CPU: {cpu:.2f} s, {timed.cpu:.2f} s of it in the model, {100 * outside / cpu:.1f} % outside, "
            f"{1000 * outside / arguments.images:.0f} ms an image"
        )


if __name__ == "__main__":
    main()
