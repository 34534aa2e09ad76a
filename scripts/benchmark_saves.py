"""How long saving a run delays its loop: `python scripts/benchmark_saves.py`.

These alternate in one process, on the full state of a model after a step of AdamW (weights and two moments in
float32):

    copy          a copy of the state into memory that was used before; the unit of all ratios
    fresh copy    the same into newly allocated memory
    synchronous   the loop itself writes the state, flushes and renames the file
    background    `CheckpointWriter.save`: the time until the loop continues
    first         the same at the first save of a run, whose memory is newly allocated

It also compares the forward rate of the model while a checkpoint is written and while none is.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from depthany.models.model import depth_anything
from depthany.system.device import keep_freed_memory
from depthany.system.files import write_atomically
from depthany.training.checkpoints.state import Progress, TrainingState
from depthany.training.checkpoints.writer import CheckpointWriter, HostCopy
from depthany.training.optim import OptimizerSettings, build_optimizer
from depthany.training.stages.base import Stage


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="vits")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", help="where to write (default: the folder of temporary files)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    state = state_after_a_step(args.encoder)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        print_stalls(state, measure_stalls(state, Path(folder), args.rounds))
        print_rates(*measure_rates(state, Path(folder), args.rounds))


def state_after_a_step(encoder: str) -> TrainingState:
    """Returns a model with the moments of its optimizer, after a step with zero gradients."""
    model = depth_anything(encoder)
    optimizer = build_optimizer(model, [], OptimizerSettings(1e-3))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TrainingState(model, Stage(), optimizer, scaler, Progress(step=1))


def measure_stalls(state: TrainingState, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each way, by round."""
    seconds: dict[str, list[float]] = {}
    kept = HostCopy()
    kept.take(state.payload())
    writer = CheckpointWriter(folder / "background", 2, "stop", print)

    def clock(name: str, action: Callable[[], object]) -> None:
        began = time.perf_counter()
        action()
        seconds.setdefault(name, []).append(time.perf_counter() - began)

    def first() -> None:
        fresh.save(state)

    with writer:
        writer.save(state)
        for k in range(rounds):
            state.progress.step += 1
            writer.wait()
            clock("copy", lambda: kept.take(state.payload()))
            clock("fresh copy", lambda: HostCopy().take(state.payload()))
            path = folder / f"synchronous_{k % 2}.pt"
            clock("synchronous", lambda path=path: save_synchronously(path, state))
            clock("background", lambda: writer.save(state))
            clock("the write in the background", writer.wait)
            with CheckpointWriter(folder / "first", 2, "stop", print) as fresh:
                clock("first", first)
    return seconds


def save_synchronously(path: Path, state: TrainingState) -> None:
    write_atomically(path, lambda partial: torch.save(state.payload(), partial))


def measure_rates(state: TrainingState, folder: Path, rounds: int) -> tuple[list[float], list[float]]:
    """Returns the seconds of forward passes at 252 pixels without a write and during one, alternately."""
    image, alone, beside = torch.randn(1, 3, 252, 252), [], []
    with torch.no_grad(), CheckpointWriter(folder / "rates", 2, "stop", print) as writer:
        for _ in range(rounds):
            for times, is_writing in ((alone, False), (beside, True)):
                if is_writing:
                    state.progress.step += 1
                    writer.save(state)
                for _ in range(3):
                    began = time.perf_counter()
                    state.model(image)
                    times.append(time.perf_counter() - began)
                writer.wait()
    return alone, beside


def print_stalls(state: TrainingState, seconds: dict[str, list[float]]) -> None:
    payload = state.payload()
    state = [payload["model"], *payload["optimizer"]["state"].values()]
    size = sum(tensor.nbytes for tensors in state for tensor in tensors.values())
    count = sum(tensor.numel() for tensor in payload["model"].values())
    print(f"{count / 1e6:.1f}M parameters; state, and so the extra memory: {size / 1e6:.0f} MB")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        low, high = min(seconds[name]) * 1e3, max(seconds[name]) * 1e3
        print(
            f"{name:28s} {median * 1e3:8.1f} ms ({low:.1f} to {high:.1f})   "
            f"{median / medians['copy']:6.2f} x copy   {median / medians['synchronous']:6.3f} x synchronous"
        )


def print_rates(alone: list[float], beside: list[float]) -> None:
    medians = statistics.median(alone), statistics.median(beside)
    print(
        f"forward pass {medians[0] * 1e3:.0f} ms without a write, {medians[1] * 1e3:.0f} ms as one begins: "
        f"{medians[1] / medians[0]:.2f} x"
    )


if __name__ == "__main__":
    main()
