"""How fast model, input and training are: `python scripts/benchmark.py NAME`, where NAME is inference, data,
labels, labeling, train, student or scaling.

inference: ours against `DepthAnythingForDepthEstimation` of transformers, with the same weights, image,
threads and dtype. The contestants alternate in one process, in an order that rotates, so that other load on
the machine affects all of them; the result is the ratio of times within a round. Weights are random without
--checkpoint: the time is the same, but the accuracy of bfloat16 depends on the weights.

data: see benchmark_data.py. labels: see benchmark_labels.py. labeling: see benchmark_labeling.py. train: see
benchmark_train.py. student: see benchmark_student.py. scaling: see benchmark_scaling.py. On a GPU (--device
cuda): see benchmark_device.py.
"""

import argparse
import copy
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import benchmark_data
import benchmark_device
import benchmark_labeling
import benchmark_labels
import benchmark_scaling
import benchmark_student
import benchmark_train
from depthany import load_model
from depthany.data.images import read_image
from depthany.models.dinov2 import Dinov2
from depthany.models.fast import attention_of, prepare_for_inference
from depthany.models.files.huggingface import save_huggingface
from depthany.models.files.onnx import relative_difference, smooth_image
from depthany.models.model import DenseModel, depth_anything
from depthany.models.preprocess import Preprocessing
from depthany.system.device import Compute, choose_amp

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Contestants = dict[str, Callable[[Tensor], Tensor]]


def main() -> None:
    """Parses the command line and runs the benchmark that it names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    what = parser.add_subparsers(required=True, dest="what")
    inference = what.add_parser("inference", help="the model against transformers")
    benchmark_data.add_arguments(what.add_parser("data", help="images to normalised crops, per core"))
    benchmark_labels.add_arguments(what.add_parser("labels", help="bytes and rates of pseudo-labels"))
    benchmark_labeling.add_arguments(what.add_parser("labeling", help="labeling against the bare teacher"))
    benchmark_train.add_arguments(what.add_parser("train", help="training steps against transformers"))
    benchmark_student.add_arguments(what.add_parser("student", help="CPU time of the default runs"))
    benchmark_scaling.add_arguments(what.add_parser("scaling", help="training in several processes"))
    inference.add_argument("--encoder", default="vits", help="size with random weights (default vits)")
    inference.add_argument("--checkpoint", help="anything load_model takes, instead of random weights")
    inference.add_argument("--image", help="a photo, cut to a square (default smooth colours)")
    inference.add_argument("--size", type=int, default=518, help="pixels per side (default 518)")
    inference.add_argument("--batches", type=int, nargs="+", default=[1, 4], help="batch sizes (default 1 4)")
    inference.add_argument("--rounds", type=int, default=7, help="timed rounds (default 7)")
    inference.add_argument("--threads", type=int, help="CPU threads (default one per core)")
    inference.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="cuda: see benchmark_device.py"
    )
    inference.add_argument("--steps", type=int, default=10, help="calls of a round on a GPU (default 10)")
    inference.add_argument("--eager", dest="compiled", action="store_false", help="GPU: compile nothing")
    arguments = parser.parse_args()
    one_thread = {
        "data": benchmark_data,
        "labels": benchmark_labels,
        "scaling": benchmark_scaling,
        "student": benchmark_student,
    }
    if arguments.what in one_thread:
        torch.set_num_threads(1)
        print(machine())
        one_thread[arguments.what].run(arguments)
        return
    if arguments.what == "labeling":
        print(machine())
        benchmark_labeling.run(arguments)
        return
    if getattr(arguments, "device", "cpu") == "cuda":
        print(machine(), torch.cuda.get_device_name(), sep="\n")
        run_on_gpu(arguments)
        return
    if arguments.what == "train":
        if not arguments.serve:
            print(machine())
        benchmark_train.run(arguments)
        return
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = (
        load_model(arguments.checkpoint)
        if arguments.checkpoint
        else depth_anything(arguments.encoder, "v2").eval()
    )
    image = square(arguments.image, arguments.size)  # [1 3 s s]
    run_inference(model, image, arguments.batches, arguments.rounds)


def run_on_gpu(arguments: argparse.Namespace) -> None:
    """Measures training or inference on a GPU; see benchmark_device.py."""
    if arguments.what == "train":
        device = torch.device("cuda")
        benchmark_device.run_training(arguments, Compute(device, choose_amp("auto", device)))
    else:
        benchmark_device.run_inference(arguments, "cuda")


@torch.inference_mode()
def run_inference(model: DenseModel, image: Tensor, batches: list[int], rounds: int) -> None:
    """Prints machine, agreement, accuracy and, for each batch size, times and ratios."""
    contestants = build(model)
    print(machine())
    print(f"{model.encoder.label} at {image.shape[3]} x {image.shape[2]}")
    if isinstance(model.encoder, Dinov2):
        kinds = {
            name: attention_of(prepare_for_inference(copy.deepcopy(model), dtype))
            for name, dtype in DTYPES.items()
        }
        print("our attention: " + ", ".join(f"{kind} in {name}" for name, kind in kinds.items()))
    print_accuracy(contestants, image)
    for batch in batches:
        times = interleave(contestants, image.repeat(batch, 1, 1, 1), rounds)
        print(f"\nbatch {batch}, {rounds} rounds: seconds per image, median (smallest to largest)")
        for name, seconds in times.items():
            print(f"  {name:18s} {spread([each / batch for each in seconds], 3)}")
        print("  ratio of times in the same round, median (smallest to largest)")
        for slow, fast in (
            ("transformers fp32", "ours fp32"),
            ("transformers bf16", "ours bf16"),
            ("transformers fp32", "ours bf16"),
        ):
            ratios = [a / b for a, b in zip(times[slow], times[fast], strict=True)]
            print(f"  {slow} : {fast} = {spread(ratios, 2)}")


def build(model: DenseModel) -> Contestants:
    """Returns both codes in both dtypes with equal weights, as functions from [b 3 h w] to [b h w]."""
    from transformers import DepthAnythingForDepthEstimation

    with tempfile.TemporaryDirectory() as folder:
        save_huggingface(model, folder)
        theirs = DepthAnythingForDepthEstimation.from_pretrained(folder, dtype=torch.float32).eval()
    contestants: Contestants = {}
    for name, dtype in DTYPES.items():
        their_copy = copy.deepcopy(theirs).to(dtype)
        our_copy = prepare_for_inference(copy.deepcopy(model), dtype)
        contestants[f"transformers {name}"] = lambda image, net=their_copy, dtype=dtype: (
            net(pixel_values=image.to(dtype)).predicted_depth
        )
        contestants[f"ours {name}"] = lambda image, net=our_copy, dtype=dtype: net(image.to(dtype)).map
    return contestants


def interleave(contestants: Contestants, image: Tensor, rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each contestant by round; another one begins each round."""
    names = list(contestants)
    for name in names:
        contestants[name](image)  # not timed: memory and kernels of this shape
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.perf_counter()
            contestants[name](image)
            times[name].append(time.perf_counter() - start)
    return times


def print_accuracy(contestants: Contestants, image: Tensor) -> None:
    """Prints how far every map is from that of transformers in float32."""
    maps = {name: run(image).float().numpy() for name, run in contestants.items()}
    expected = maps.pop("transformers fp32")
    print("difference to transformers fp32 as a share of its map's range, and correlation with it")
    for name, found in maps.items():
        difference = relative_difference(found, expected)
        correlation = np.corrcoef(found.ravel(), expected.ravel())[0, 1]
        print(
            f"  {name:18s} largest {difference['max']:.1e}, mean {difference['mean']:.1e}, "
            f"correlation {correlation:.6f}"
        )


def square(path: str | None, size: int) -> Tensor:
    """Returns the model input [1 3 size size] of the middle of a photo, or of smooth colours without one."""
    if path is None:
        return smooth_image(1, size, size)
    photo = read_image(Path(path), convert=True)
    side = min(photo.shape[:2])
    top, left = ((extent - side) // 2 for extent in photo.shape[:2])
    return Preprocessing().prepare(photo[top : top + side, left : left + side], size)[None]


def spread(values: list[float], digits: int) -> str:
    """Returns the text "median (smallest to largest)"."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def machine() -> str:
    """Returns a line on processor, threads, load and versions."""
    from transformers import __version__ as transformers_version

    info = Path("/proc/cpuinfo")
    names = [
        line.partition(": ")[2] for line in info.read_text().splitlines() if line.startswith("model name")
    ]
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{names[0] if names else platform.processor()}, {os.cpu_count()} logical cores, "
        f"{torch.get_num_threads()} threads{load}, {torch.backends.cpu.get_cpu_capability()}; "
        f"torch {torch.__version__}, transformers {transformers_version}, Python {platform.python_version()}"
    )


if __name__ == "__main__":
    main()
