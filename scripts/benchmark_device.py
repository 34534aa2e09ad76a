"""Training and inference on a GPU: `python scripts/benchmark.py train|inference --device cuda`.

Contestants have the same weights and images and alternate in one process, in an order that rotates:

- ours: the body of the training loop, eager, with `compile=true`, and with `cuda_graphs=true` (on a GPU).
- transformers: `DepthAnythingForDepthEstimation` in a plain loop under the same autocast, eager and with
  `torch.compile`; see transformers_training.py.

A row has the images per second, the median of the ratios to `transformers` (eager) within a round, the most
memory of the contestant, and TFLOP/s: matrix products and convolutions as `FlopCounterMode` counts them in
our eager step, over the median time. Their share is of a large matrix product measured in the same run.
Launches and waits of a step are counted by the profiler. Times by part are synchronised, so they add up to
more than a step takes.
"""

import argparse
import copy
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import benchmark_train
from depthany.data.batch import Batch
from depthany.inference.replay import ReplayedMaps
from depthany.models.fast import prepare_for_inference
from depthany.models.model import DenseModel, depth_anything
from depthany.system.device import Compute, choose_amp
from our_training import OurTraining, Shares
from transformers_training import PlainTraining, from_transformers

# network, side of the image, images of a step of the teacher and of the student
NETWORKS = {"vitt": (126, 12, 12), "vits": (518, 32, 48), "vitb": (518, 24, 24), "vitl": (518, 12, 12)}
PEAK_SIDE = 8192  # of the matrices whose product gives the rate of the hardware
LAUNCHES = (
    "cudaLaunchKernel",
    "cudaLaunchKernelExC",
    "cuLaunchKernel",
    "cuLaunchKernelEx",
    "cudaGraphLaunch",
)
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
THEIRS = "transformers"
Step = Callable[[int], object]


@dataclass
class Contestant:
    """A way to do the same work.

    Attributes:
        step: does it once; takes a number that it draws from.
        resident_gb: memory that it holds between steps.
        peak_gb: the most that it needed, without what the others hold.
        first_s: seconds of its first two steps, with compilation.
        seconds: per step, by round.
    """

    name: str
    step: Step
    resident_gb: float = 0.0
    peak_gb: float = 0.0
    first_s: float = 0.0
    seconds: list[float] = field(default_factory=list)


class Device:
    """Clock and memory of the device."""

    def __init__(self, compute: Compute) -> None:
        self.compute, self.device = compute, compute.device
        self.is_cuda = compute.device.type == "cuda"

    def now(self) -> float:
        """Returns the time in seconds after all work so far is done."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def held_gb(self) -> float:
        """Returns the memory of all tensors, 0 on a CPU."""
        return torch.cuda.memory_allocated(self.device) / 1e9 if self.is_cuda else 0.0

    def peak_gb(self) -> float:
        """Returns the peak memory since the last call, and resets it."""
        if not self.is_cuda:
            return 0.0
        peak = torch.cuda.max_memory_allocated(self.device) / 1e9
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak

    def matrix_tflops(self, side: int = PEAK_SIDE, times: int = 20) -> float:
        """Returns the rate of a product of two square matrices in the number format of the contestants."""
        a, b = torch.randn(2, side, side, device=self.device).to(self.compute.dtype)
        for _ in range(3):
            a @ b
        began = self.now()
        for _ in range(times):
            a @ b
        return 2 * side**3 * times / (self.now() - began) / 1e12


def run_training(arguments: argparse.Namespace, compute: Compute, peak_side: int = PEAK_SIDE) -> None:
    """Prints a table for each network and stage.

    Args:
        arguments: those of `benchmark.py train`; `arguments.encoder` None means all `NETWORKS`.
    """
    device = Device(compute)
    peak_tflops = device.matrix_tflops(peak_side)
    print(f"a product of two {peak_side} x {peak_side} matrices: {peak_tflops:.0f} TFLOP/s")
    for encoder in [arguments.encoder] if arguments.encoder else NETWORKS:
        size, *batches = NETWORKS.get(encoder, NETWORKS["vits"])
        for stage, usual in zip(("teacher", "student"), batches):
            if stage in arguments.stage:
                side = arguments.sizes[0] if arguments.sizes else size
                compare_training(
                    arguments, device, encoder, stage, side, arguments.batch or usual, peak_tflops
                )
                free_memory()
        for stage in ("metric", "gradient"):
            if stage in arguments.stage:
                side = arguments.sizes[0] if arguments.sizes else size
                compare_variants(arguments, device, encoder, stage, side, arguments.batch or batches[0])
                free_memory()


def compare_variants(
    arguments: argparse.Namespace, device: Device, encoder: str, variants: str, size: int, batch: int
) -> None:
    """Measures metric training with each head, or the gradient-matching loss, against the relative stage, and
    prints a line for each."""
    arguments.batch, contestants = batch, list[Contestant]()
    for name in benchmark_train.variants(arguments, variants):
        stage = "metric" if name in benchmark_train.HEADS else "teacher"
        read = list(benchmark_train.read(arguments, stage, size, 2, workers=0))
        torch.manual_seed(0)
        model = benchmark_train.network(name, encoder, size)
        build = lambda: stepper(  # noqa: E731
            OurTraining(
                model,  # noqa: B023
                False,
                device.compute,
                arguments.checkpointing,
                arguments.compiled,
                gradient=name == benchmark_train.GRADIENT,  # noqa: B023
            ),
            [each.to(device.device) for each in read],  # noqa: B023
        )
        contestants.append(ready(device, name, build))
    take_turns(device, contestants, arguments.rounds, arguments.steps)
    print(f"\n{variants}, {encoder} at {size}, {batch} images, {device.compute.precision}")
    for each in contestants:
        ratios = [own / relative for own, relative in zip(each.seconds, contestants[0].seconds)]
        rate = batch / statistics.median(each.seconds)
        print(
            f"  {each.name:8s} {rate:.1f} images/s, {each.peak_gb:.1f} GB; "
            f"{each.name} : {contestants[0].name} = {benchmark_train.spread(ratios)}"
        )


def compare_training(
    arguments: argparse.Namespace,
    device: Device,
    encoder: str,
    stage: str,
    size: int,
    batch: int,
    peak_tflops: float,
) -> None:
    """Measures the contestants of one network and stage and prints their table."""
    began = time.perf_counter()
    arguments.batch = batch
    batches = [each.to(device.device) for each in benchmark_train.read(arguments, stage, size, 2, workers=0)]
    torch.manual_seed(0)
    model, student = depth_anything(encoder, input_size=size), stage == "student"
    ours = OurTraining(copy.deepcopy(model), student, device.compute, arguments.checkpointing)
    contestants = [ready(device, "ours", lambda: stepper(ours, batches))]
    flops = counted_flops(contestants[0].step)
    if arguments.compiled:
        kinds = {"ours, compiled": False} | ({"ours, CUDA graphs": True} if device.is_cuda else {})
        for name, graphs in kinds.items():
            compiled = lambda: stepper(  # noqa: E731
                OurTraining(
                    copy.deepcopy(model),
                    student,
                    device.compute,
                    arguments.checkpointing,
                    compiled=True,
                    cuda_graphs=graphs,  # noqa: B023
                ),
                batches,
            )
            contestants.append(ready(device, name, compiled))
    for compiles in (False, True) if arguments.compiled else (False,):
        name = f"{THEIRS}, compiled" if compiles else THEIRS
        theirs = lambda: stepper(PlainTraining(model, student, device.compute, compiles), batches)  # noqa: B023, E731
        contestants.append(ready(device, name, theirs))
    take_turns(device, contestants, arguments.rounds, arguments.steps)
    print(
        f"\n{stage}, {encoder} at {size}, {batch} images, {device.compute.precision}, "
        f"{arguments.rounds} rounds of {arguments.steps} steps"
    )
    print_table(contestants, batch, flops, peak_tflops)
    print(f"  {operations(contestants[0].step, device)}")
    for each in contestants[1:-2]:
        print(f"  {each.name}: {operations(each.step, device)}")
    print(f"  parts of our step, synchronised: {parts(ours, batches, device)}")
    print(f"  measured in {time.perf_counter() - began:.0f} s", flush=True)


def stepper(training: OurTraining | PlainTraining, batches: list[Batch]) -> Step:
    """Returns a function that takes step number k."""
    return lambda k: training.step(batches[k % len(batches)], k)


def ready(device: Device, name: str, build: Callable[[], Step]) -> Contestant:
    """Returns a contestant that has taken two steps; its memory and their time are noted."""
    before, began = device.held_gb(), device.now()
    step = build()
    for k in range(2):
        step(k)
    first_s = device.now() - began
    return Contestant(name, step, device.held_gb() - before, first_s=first_s)


def take_turns(device: Device, contestants: list[Contestant], rounds: int, steps: int) -> None:
    """Times `steps` steps of each contestant per round."""
    for number in range(rounds):
        first = number % len(contestants)
        for contestant in contestants[first:] + contestants[:first]:
            others_gb = device.held_gb() - contestant.resident_gb
            device.peak_gb()
            began = device.now()
            for k in range(steps):
                contestant.step(2 + number * steps + k)
            contestant.seconds.append((device.now() - began) / steps)
            contestant.peak_gb = max(contestant.peak_gb, device.peak_gb() - others_gb)


def print_table(contestants: list[Contestant], images: int, flops: float, peak_tflops: float) -> None:
    """Prints a row for each contestant."""
    base = next(each for each in contestants if each.name == THEIRS)
    print("| | images/s | to transformers | GB | TFLOP/s | of the product | first two steps |")
    print("|---|---|---|---|---|---|---|")
    for each in contestants:
        seconds = statistics.median(each.seconds)
        ratios = [theirs / own for theirs, own in zip(base.seconds, each.seconds)]
        tflops = flops / seconds / 1e12
        print(
            f"| {each.name} | {images / seconds:.1f} | {statistics.median(ratios):.2f} ({min(ratios):.2f} to "
            f"{max(ratios):.2f}) | {each.peak_gb:.1f} | {tflops:.2f} | {tflops / peak_tflops:.0%} | "
            f"{each.first_s:.1f} s |"
        )


def counted_flops(step: Step) -> float:
    """Returns the floating-point operations of one step, forward and backward."""
    counter = FlopCounterMode(display=False)
    with counter:
        step(0)
    return float(counter.get_total_flops())


def operations(step: Step, device: Device) -> str:
    """Returns how many kernels a step launches and how often it waits, or its operators on a CPU."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.is_cuda else [])]
    device.now()
    with profile(activities=activities) as found:
        step(0)
        launched = device.now()  # one wait of ours
    del launched
    counts = {event.key: event.count for event in found.key_averages()}
    if not device.is_cuda:
        operators = sum(count for key, count in counts.items() if key.startswith("aten::"))
        return f"{operators} operators a step, with those that they call"
    launches, waits = (sum(counts.get(name, 0) for name in names) for names in (LAUNCHES, WAITS))
    return f"{launches} launches and {max(0, waits - 1)} waits for the GPU a step"


def parts(ours: OurTraining, batches: list[Batch], device: Device) -> str:
    """Returns milliseconds of a step by part."""
    shares, steps = Shares(ours, device.now), 3
    with shares.timing():
        for k in range(steps):
            ours.step(batches[k % len(batches)], k)
    return ", ".join(f"{name} {seconds / steps * 1e3:.1f} ms" for name, seconds in shares.seconds.items())


def run_inference(arguments: argparse.Namespace, device_name: str, peak_side: int = PEAK_SIDE) -> None:
    """Prints a table of the forward pass for each number format and batch size."""
    for precision in ("bf16", "fp16") if device_name == "cuda" else ("bf16",):
        torch_device = torch.device(device_name)
        device = Device(Compute(torch_device, choose_amp(precision, torch_device)))
        peak_tflops = device.matrix_tflops(peak_side)
        torch.manual_seed(0)
        model = depth_anything(arguments.encoder, "v2").eval()
        for batch in arguments.batches:
            image = torch.randn(batch, 3, arguments.size, arguments.size, device=torch_device)
            with torch.inference_mode():
                compare_inference(arguments, device, model, image.to(device.compute.dtype), peak_tflops)
            free_memory()


def compare_inference(
    arguments: argparse.Namespace, device: Device, model: DenseModel, image: Tensor, peak_tflops: float
) -> None:
    """Measures the forward pass on image [b 3 h w] and prints the table."""
    dtype, place = device.compute.dtype, device.device
    ours = prepare_for_inference(copy.deepcopy(model).to(place), dtype)
    theirs = from_transformers(model).eval().to(place, dtype)
    networks: dict[str, nn.Module] = {"ours": ours}
    if arguments.compiled:
        networks["ours, compiled"] = compiled_copy(ours)
    networks[THEIRS] = theirs
    if arguments.compiled:
        networks[f"{THEIRS}, compiled"] = compiled_copy(theirs)

    def stepper_of(network: nn.Module) -> Step:
        return lambda k: network(image)

    contestants = [
        ready(device, name, lambda network=network: stepper_of(network))  # type: ignore[misc]
        for name, network in networks.items()
    ]
    if device.is_cuda:
        replayed = ReplayedMaps()
        contestants.append(ready(device, "ours, CUDA graphs", lambda: lambda k: replayed(ours, image)))
    flops = counted_flops(contestants[0].step)
    take_turns(device, contestants, arguments.rounds, arguments.steps)
    print(f"\n{arguments.encoder} at {image.shape[3]}, batch {len(image)}, {device.compute.precision}")
    print_table(contestants, len(image), flops, peak_tflops)


def compiled_copy(network: nn.Module) -> nn.Module:
    """Returns a copy that is compiled at its first call."""
    network = copy.deepcopy(network)
    network.compile()
    return network


def free_memory() -> None:
    """Frees what contestants held, and forgets what was compiled for them."""
    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
