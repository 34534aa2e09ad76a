"""How training scales over processes: `python scripts/benchmark.py scaling`.

Real runs on the bundled sample, started by torchrun, alternate between one process and several. Every process
has one thread and the same number of images per step. The result is the ratio of images per second within a
round; the ideal is the number of processes. It needs as many free cores as processes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 1  # lines of the log that are not counted: the first steps are slower


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `benchmark.py scaling`."""
    parser.add_argument("--processes", type=int, default=2, help="processes of the larger run (default 2)")
    parser.add_argument("--stage", nargs="+", choices=("teacher", "student"), default=["teacher", "student"])
    parser.add_argument("--batch", type=int, default=12, help="images a step of each process (default 12)")
    parser.add_argument("--steps", type=int, default=40, help="steps of a run (default 40)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument(
        "settings", nargs="*", help="further settings of depthany.train, such as parallel=fsdp"
    )


def run(arguments: argparse.Namespace) -> None:
    """Measures and prints."""
    with tempfile.TemporaryDirectory() as folder:
        teacher = Path(folder, "teacher")
        start("teacher", 1, teacher, arguments.batch, 2, arguments.settings)  # a student needs one
        for stage in arguments.stage:
            print(f"\n{stage}, {arguments.batch} images a step and process, one thread each", flush=True)
            ratios = []
            for number in range(arguments.rounds):
                rates = {
                    processes: measure(
                        stage, processes, Path(folder, f"{stage}{number}_{processes}"), teacher, arguments
                    )
                    for processes in ((1, arguments.processes) if number % 2 else (arguments.processes, 1))
                }
                ratios.append(rates[arguments.processes] / rates[1])
                print(
                    f"  round {number + 1}: {rates[1]:.1f} and {rates[arguments.processes]:.1f} images/s, "
                    f"{ratios[-1]:.2f} times",
                    flush=True,
                )
            middle = statistics.median(ratios)
            print(
                f"  {arguments.processes} processes : 1 = {middle:.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f}), {middle / arguments.processes:.0%} of ideal"
            )


def measure(stage: str, processes: int, run_dir: Path, teacher: Path, arguments: argparse.Namespace) -> float:
    """Returns the images per second of a run after its first steps."""
    more = [f"stage.teacher={teacher}"] if stage == "student" else []
    batch = arguments.batch * processes
    start(stage, processes, run_dir, batch, arguments.steps, [*more, *arguments.settings])
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    rates = [line["speed/images_per_second"] for line in lines if "speed/images_per_second" in line]
    return statistics.harmonic_mean(rates[WARM_UP:])


def start(stage: str, processes: int, run_dir: Path, batch: int, steps: int, more: list[str]) -> None:
    """Runs training without validation, pictures and checkpoints on the way."""
    settings = [f"stage={stage}", f"run_dir={run_dir}", f"batch_size={batch}", f"steps={steps}", "threads=1"]
    quiet = ["log_every=10", "image_every=0", "eval_every=0", "save_every=0", *no_validation()]
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
    ]
    done = subprocess.run(
        [*launcher, "-m", "depthany.train", *settings, *quiet, *more],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"the run of {processes} processes failed:\n{done.stdout}{done.stderr}")


def no_validation() -> list[str]:
    """Returns settings that leave out every validation set of the sample."""
    names = ("labeled_rooms", "labeled_streets", "unlabeled_rooms", "unlabeled_streets")
    return [f"data.val.{name}.root=null" for name in names]
