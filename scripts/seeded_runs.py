"""Runs of `depthany.train` over several seeds, and the cells of their tables; used by the ladders."""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

COST = "cost.json"  # beside a run: minutes of wall time and GB of the largest memory


def parser_of_runs(description: str, out: str) -> argparse.ArgumentParser:
    """Returns the options that all ladders share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path(out), help="runs, table and plot go here")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time; threads=N sets the threads of a run"
    )
    parser.add_argument("--data", type=Path, default=Path("data/sample"), help="for scoring")
    parser.add_argument("--test", action="store_true", help="score the test split, too")
    parser.add_argument("overrides", nargs="*", help="settings of all runs, e.g. threads=1 passes=5")
    return parser


def require_runs(
    place: Path, runs: Iterable[str], seeds: Sequence[int], script: str = "ladder", option: str = "--ladder"
) -> None:
    """Exits unless another script has trained these runs for these seeds.

    Args:
        place: --out of that script, which `option` names here.
    """
    for run, seed in product(runs, seeds):
        folder = place / f"{run}_{seed}"
        if not (folder / "model.safetensors").exists():
            command = f"python scripts/{script}.py --seeds {' '.join(map(str, seeds))}"
            sys.exit(f"error: {folder} has no trained model: run {command}, or pass its --out as {option}")


def train(folder: Path, settings: Iterable[str]) -> None:
    """Trains one run in its own process, unless it is trained already; exits if it fails."""
    if (folder / "model.safetensors").exists():
        return
    command = [sys.executable, "-m", "depthany.train", f"run_dir={folder}", "image_every=0", *settings]
    print(" ".join(command[1:]), flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with open(folder / "log.txt", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{folder.name} failed: see {folder / 'log.txt'}; the same command continues")
    cost = {"minutes": (time.perf_counter() - began) / 60, "memory_gb": usage.ru_maxrss * 1024 / 1e9}
    (folder / COST).write_text(json.dumps(cost) + "\n")


def cost_of(folder: Path) -> tuple[float, float]:
    """Returns minutes and GB of a finished run."""
    cost = json.loads((folder / COST).read_text())
    return cost["minutes"], cost["memory_gb"]


def command_line() -> str:
    """Returns the command that was typed, for the table."""
    return f"python scripts/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip()


def heading_lines(columns: Sequence[str]) -> list[str]:
    """Returns the two first lines of a table whose first column has no heading."""
    return ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]


def mean_cells(values: NDArray[np.float64]) -> list[str]:
    """Returns mean ± standard deviation over the seeds of values [seeds columns]."""
    spread = values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
    return [f"{mean:.3f} ± {std:.3f}" for mean, std in zip(values.mean(0), spread)]


def difference_cells(values: NDArray[np.float64]) -> list[str]:
    """Returns mean, smallest and largest difference over the seeds of values [seeds columns]."""
    return [f"{d.mean():+.3f} ({d.min():+.3f} to {d.max():+.3f})" for d in values.T]
