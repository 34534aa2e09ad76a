"""How fast a training step is: `python scripts/benchmark.py train`.

A step is forward, loss, backward and AdamW on batches of the bundled sample. Contestants have the same
weights and see the same batches, with teacher and frozen encoder of the student's size:

- ours: the body of the training loop, in the precision that `depthany.train` chooses for this machine
  (bfloat16 where the hardware multiplies it), with its settings of the memory allocator.
- transformers fp32, bf16: `DepthAnythingForDepthEstimation` in a plain loop as its user would write it, see
  transformers_training.py; bf16 is `torch.autocast`.

With --stage metric or gradient the contestants are ours alone: the teacher's stage, which is called relative,
against metric training with each --head, or against the teacher with the gradient-matching loss of V2.

The contestants alternate step by step, in an order that rotates, so that other load on the machine affects
all of them; the result is the ratio of times within a round. The ratio of CPU times is printed, too: on a
busy machine it varies less, as long as --threads is 1 (idle threads of OpenMP spin).

Every contestant has its own process, since allocator settings and the largest resident memory belong to a
process, not to a model. --one-process puts all into one: the plain loops then get our allocator settings, and
memory is not printed.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import torch

from depthany.data.batch import Batch
from depthany.data.dataset import TrainingSet
from depthany.data.folder_depth import FolderDepth
from depthany.data.loading.loader import read_batches
from depthany.data.sampler import MixedBatches
from depthany.data.unlabeled import FolderImages
from depthany.models.model import DenseModel, build_model, depth_anything, depth_anything_config
from depthany.system.device import Compute, choose_amp, keep_freed_memory
from our_training import OurTraining, Shares
from transformers_training import PlainTraining

FARTHEST_M = 65.0  # in the bundled data
SAMPLE = Path(__file__).resolve().parents[1] / "data/sample"
CONTESTANTS = ("ours", "transformers fp32", "transformers bf16")
HEADS, GRADIENT = ("bins", "sigmoid"), "gradient"  # contestants of --stage metric and gradient,
RELATIVE = "relative"  # and what they are compared with
Cost = tuple[float, float]  # seconds on the wall, and of the CPU
Turn = Callable[[int], Cost]  # from the number of the batch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `benchmark.py train`."""
    parser.add_argument("--encoder", help="size of all networks (CPU: vits; GPU: vitt, vits, vitb and vitl)")
    parser.add_argument("--sizes", type=int, nargs="+", help="pixels per side (CPU: 518 252 126; GPU: 518)")
    stages = ("teacher", "student", "metric", "gradient")
    parser.add_argument("--stage", nargs="+", choices=stages, default=["teacher", "student"])
    parser.add_argument("--head", nargs="+", choices=HEADS, default=list(HEADS), help="of --stage metric")
    parser.add_argument(
        "--batch", type=int, help="images per step; a third of a student's is labeled (CPU: 6; GPU: 12 to 48)"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="cuda: see benchmark_device.py"
    )
    parser.add_argument("--steps", type=int, default=5, help="steps of a round on a GPU (default 5)")
    parser.add_argument(
        "--eager",
        dest="compiled",
        action="store_false",
        help="GPU: compile nothing (compiling takes a minute)",
    )
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (default 7)")
    parser.add_argument("--threads", type=int, help="CPU threads (default one per core)")
    parser.add_argument("--one-process", action="store_true", help="all contestants in one process")
    parser.add_argument(
        "--checkpointing", action="store_true", help="ours with activation_checkpointing=true"
    )
    parser.add_argument(
        "--serve", choices=(*CONTESTANTS, RELATIVE, GRADIENT, *HEADS), help=argparse.SUPPRESS
    )  # see `serve`


def run(arguments: argparse.Namespace) -> None:
    """Prints times, ratios, memory and shares for each stage and size; with --serve it is one contestant."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.encoder = arguments.encoder or "vits"
    arguments.sizes, arguments.batch = arguments.sizes or [518, 252, 126], arguments.batch or 6
    if arguments.serve:
        serve(arguments)
        return
    for stage in arguments.stage:
        for size in arguments.sizes:
            compare(arguments, stage, size)


def compare(arguments: argparse.Namespace, stage: str, size: int) -> None:
    """Compares the contestants in one stage at one size."""
    print(
        f"\n{stage}, {arguments.encoder} at {size}, batch {arguments.batch}, {arguments.rounds} rounds",
        flush=True,
    )
    names = variants(arguments, stage) or CONTESTANTS
    with ExitStack() as stack:
        if arguments.one_process:
            keep_freed_memory()
            turns = {name: contestant(name, arguments, stage, size) for name in names}
            children = []
        else:
            children = [stack.enter_context(Child(name, arguments, stage, size)) for name in names]
            turns = {child.name: child.turn for child in children}
        times = alternate(turns, arguments.rounds)
        peaks = {child.name: child.ask("peak")["peak"] for child in children}
    for name, seconds in times.items():
        memory = f", {peaks[name]:.2f} GB at most" if peaks else ""
        print(f"  {name:18s} {spread([arguments.batch / wall for wall, _ in seconds])} images/s{memory}")
    first = names[0]
    for slow in names[1:]:
        wall, cpu = (
            spread([a[i] / b[i] for a, b in zip(times[slow], times[first], strict=True)]) for i in (0, 1)
        )
        print(f"  {slow} : {first} = {wall}, of CPU times {cpu}", flush=True)
    if names is CONTESTANTS:
        print_shares(arguments, stage, size)


def variants(arguments: argparse.Namespace, stage: str) -> tuple[str, ...]:
    """Returns the contestants of a stage that compares ours alone, or ()."""
    return {"metric": (RELATIVE, *arguments.head), "gradient": (RELATIVE, GRADIENT)}.get(stage, ())


def alternate(turns: dict[str, Turn], rounds: int) -> dict[str, list[Cost]]:
    """Returns the cost of each contestant by round, after one round that is not counted."""
    names, times = list(turns), {name: list[Cost]() for name in turns}
    for k in range(rounds + 1):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            times[name].append(turns[name](k))
    return {name: costs[1:] for name, costs in times.items()}


def contestant(name: str, arguments: argparse.Namespace, stage: str, size: int) -> Turn:
    """Returns a contestant in this process; its batches are read in advance."""
    of_stage = stage if name != RELATIVE else "teacher"
    batches = list(read(arguments, of_stage, size, arguments.rounds + 1, workers=0))
    torch.manual_seed(0)
    student, cpu = stage == "student", torch.device("cpu")
    model = network(name, arguments.encoder, size)
    if name not in CONTESTANTS[1:]:
        compute, gradient = Compute(cpu, choose_amp("auto", cpu)), name == GRADIENT
        step = OurTraining(model, student, compute, arguments.checkpointing, gradient=gradient).step
    else:
        step = PlainTraining(
            model, student, Compute(cpu, torch.bfloat16 if name.endswith("bf16") else None)
        ).step

    def turn(k: int) -> Cost:
        wall, cpu = time.perf_counter(), time.process_time()
        step(batches[k], k)
        return time.perf_counter() - wall, time.process_time() - cpu

    return turn


def network(name: str, encoder: str, size: int) -> DenseModel:
    """Returns a model with random weights: a metric one if `name` is one of `HEADS`, else a relative one."""
    config = depth_anything_config(encoder, "v1", input_size=size)
    if name in HEADS:
        config["head"] = {"name": f"metric_{name}", "max_depth_m": FARTHEST_M}
    return build_model(**config)


class Child:
    """A contestant in its own process, which answers every line that it is sent by a line of JSON."""

    def __init__(self, name: str, arguments: argparse.Namespace, stage: str, size: int) -> None:
        options = [
            "--encoder",
            arguments.encoder,
            "--stage",
            stage,
            "--sizes",
            size,
            "--batch",
            arguments.batch,
        ]
        options += ["--rounds", arguments.rounds, "--threads", torch.get_num_threads(), "--serve", name]
        options += ["--checkpointing"] if arguments.checkpointing else []
        command = [sys.executable, str(Path(__file__).with_name("benchmark.py")), "train", *map(str, options)]
        pipe = subprocess.PIPE
        self.name = name
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def ask(self, what: str) -> dict[str, float]:
        """Sends a line; returns the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process of {self.name} ended, perhaps because memory ran out")
        found: dict[str, float] = json.loads(answer)
        return found

    def turn(self, k: int) -> Cost:
        """Returns the cost of step `k`."""
        answer = self.ask(str(k))
        return answer["wall"], answer["cpu"]

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def serve(arguments: argparse.Namespace) -> None:
    """Serves as a contestant: a number on stdin is a step to take; `peak` asks for the resident GB."""
    if arguments.serve not in CONTESTANTS[1:]:  # as training does
        keep_freed_memory()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints
    turn = contestant(arguments.serve, arguments, arguments.stage[0], arguments.sizes[0])
    for line in sys.stdin:
        if line.strip() == "peak":
            kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            answers.write(json.dumps({"peak": kibibytes * 1024 / 1e9}) + "\n")
        else:
            answers.write(json.dumps(dict(zip(("wall", "cpu"), turn(int(line)), strict=True))) + "\n")


def print_shares(arguments: argparse.Namespace, stage: str, size: int) -> None:
    """Prints where the time of our step goes, with the real loader and one loader process."""
    torch.manual_seed(0)
    keep_freed_memory()
    model = depth_anything(arguments.encoder, input_size=size)
    cpu = torch.device("cpu")
    compute = Compute(cpu, choose_amp("auto", cpu))
    ours = OurTraining(model, stage == "student", compute, arguments.checkpointing)
    batches = read(arguments, stage, size, 2 + min(5, arguments.rounds), workers=1)
    for k in range(2):
        ours.step(next(batches), k)
    shares, start = Shares(ours), time.perf_counter()
    with shares.timing():
        for k in range(2, 2 + min(5, arguments.rounds)):
            with shares.part("waiting for data"):
                batch = next(batches)
            ours.step(batch, k)
    total = time.perf_counter() - start
    del batches  # ends the loader process
    print(
        "  share of the time: "
        + ", ".join(f"{name} {each / total:.1%}" for name, each in shares.seconds.items())
    )


def read(arguments: argparse.Namespace, stage: str, size: int, count: int, workers: int) -> Iterator[Batch]:
    """Yields batches of the bundled sample, as training reads them."""
    folder = str(SAMPLE / "labeled/train")
    labeled = [FolderDepth(folder, depth_scale=1000, sky_value=65535, max_depth=FARTHEST_M)]
    unlabeled = [FolderImages(str(SAMPLE / "unlabeled/train/images"))] if stage == "student" else []
    target = "depth_m" if stage == "metric" else "disparity01"
    dataset = TrainingSet(labeled, unlabeled, size, target=target)
    known = arguments.batch // 3 if unlabeled else arguments.batch
    plain = arguments.batch - known
    counts = dataset.labeled_count, dataset.unlabeled_count
    sampler = MixedBatches(*counts, known, plain, count * (plain or known), seed=0)
    return read_batches(dataset, sampler, workers, False, lambda k, batch: None)


def spread(values: list[float]) -> str:
    """Returns the text "median (smallest to largest)"."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
