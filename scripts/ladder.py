"""The ablation ladder of the paper (its Table 9) on the bundled data, over several seeds.

    python scripts/ladder.py --seeds 0 1 2

Trains, for each seed, a teacher and three students that differ in one thing from rung to rung (naive
pseudo-labels, + strong perturbations, + feature alignment), scores all of them on the validation sets, and
writes outputs/ladder/ladder.md and outputs/ladder/ladder.png. What is trained already is kept, so that the
command can be started again. --test adds the test split: for the final table only, never to choose anything
by.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from matplotlib import pyplot
from numpy.typing import NDArray

from depthany import load_model
from depthany.data.labeled import FolderDepth
from depthany.evaluate import evaluate

NAIVE = [
    "perturb=none",
    "stage.weights.feature=0",
    "stage.weights.labeled=0.5",
    "stage.weights.unlabeled=0.5",
]
PERTURBED = NAIVE[1:]
RUNGS: dict[str, list[str]] = {
    "teacher": [],
    "naive student": NAIVE,
    "+ perturbations": PERTURBED,
    "+ feature alignment": [],  # the default student
}
SETS = {
    "labeled": ("labeled", "val"),
    "unlabeled": ("unlabeled", "val"),
    "unlabeled test": ("unlabeled", "test"),
}
INPUT_SIZE = 126


@dataclass(frozen=True)
class Table:
    """Scores of all runs; values: [rungs seeds sets 2], the last axis AbsRel and delta1."""

    sets: list[str]
    seeds: list[int]
    values: NDArray[np.float64]
    minutes: NDArray[np.float64]  # [rungs seeds] wall time of training


def main() -> None:
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(args.jobs) as pool:  # one seed is a chain: its students wait for its teacher
        list(pool.map(lambda seed: train_seed(seed, args), args.seeds))
    table = score_all(args)
    text = markdown(table, f"python scripts/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}")
    (args.out / "ladder.md").write_text(text)
    plot(table, args.out / "ladder.png")
    print(text)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/ladder"), help="runs, table and plot go here"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="seeds at a time; give each its threads by threads=N"
    )
    parser.add_argument("--data", type=Path, default=Path("data/sample"), help="for scoring")
    parser.add_argument("--test", action="store_true", help="score the test split, too")
    parser.add_argument("overrides", nargs="*", help="settings of all runs, e.g. threads=1 passes=5")
    return parser.parse_args()


def run_name(rung: str, seed: int) -> str:
    return f"{rung.replace('+ ', '').replace(' ', '_')}_{seed}"


def train_seed(seed: int, args: argparse.Namespace) -> None:
    """Teacher, then its students, each in a process of its own."""
    for rung, overrides in RUNGS.items():
        folder = args.out / run_name(rung, seed)
        command = [
            sys.executable,
            "-m",
            "depthany.train",
            f"run_dir={folder}",
            f"seed={seed}",
            "image_every=0",
        ]
        command += ["stage=teacher"] if rung == "teacher" else ["stage=student", *overrides]
        if rung != "teacher":
            command.append(f"stage.teacher={args.out / run_name('teacher', seed)}")
        train_once(command + args.overrides, folder)


def train_once(command: Sequence[str], folder: Path) -> None:
    if (folder / "model.safetensors").exists():
        return
    print(" ".join(command[1:]), flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with open(folder / "log.txt", "w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
    (folder / "minutes.txt").write_text(f"{(time.perf_counter() - began) / 60:.2f}\n")


def score_all(args: argparse.Namespace) -> Table:
    """Score every model in float32."""
    names = [name for name in SETS if args.test or not name.endswith("test")]
    sets = {
        name: FolderDepth(str(args.data.joinpath(*SETS[name])), sky_value=65535, max_depth=65)
        for name in names
    }
    values = np.empty((len(RUNGS), len(args.seeds), len(names), 2))
    minutes = np.empty(values.shape[:2])
    for i, rung in enumerate(RUNGS):
        for j, seed in enumerate(args.seeds):
            folder = args.out / run_name(rung, seed)
            scores = evaluate(load_model(folder), sets, INPUT_SIZE, torch.device("cpu"))
            values[i, j] = [[scores[name]["abs_rel"], scores[name]["delta1"]] for name in names]
            minutes[i, j] = float((folder / "minutes.txt").read_text())
    result = {"rungs": list(RUNGS), "seeds": args.seeds, "sets": names, "values": values.tolist()}
    (args.out / "ladder.json").write_text(json.dumps(result, indent=2) + "\n")
    return Table(names, args.seeds, values, minutes)


def markdown(table: Table, command: str) -> str:
    """Mean and standard deviation over seeds, and the difference to the teacher of the same seed."""
    columns = [f"{name} {metric}" for name in table.sets for metric in ("AbsRel", "delta1")]
    lines = [f"`{command}`", "", "| | " + " | ".join([*columns, "minutes"]) + " |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    for i, rung in enumerate(RUNGS):
        runs = table.values[i].reshape(len(table.seeds), -1)
        spread = runs.std(0, ddof=1) if len(runs) > 1 else np.zeros(runs.shape[1])
        cells = [f"{mean:.4f} ± {std:.4f}" for mean, std in zip(runs.mean(0), spread)]
        lines.append(f"| {rung} | " + " | ".join(cells) + f" | {table.minutes[i].mean():.1f} |")
    lines += [
        "",
        f"Mean ± standard deviation over seeds {table.seeds}. Difference to the teacher of the same seed:",
    ]
    lines += ["", "| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for i, rung in enumerate(RUNGS):
        if i:
            difference = (table.values[i] - table.values[0]).reshape(len(table.seeds), -1)
            cells = [f"{d.mean():+.4f} ({d.min():+.4f} to {d.max():+.4f})" for d in difference.T]
            lines.append(f"| {rung} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(table: Table, path: Path) -> None:
    """AbsRel by rung for each set: every seed a thin line, the mean a thick one."""
    figure, axes = pyplot.subplots(1, len(table.sets), figsize=(4.2 * len(table.sets), 3.4), squeeze=False)
    for k, (axis, name) in enumerate(zip(axes[0], table.sets)):
        abs_rel = table.values[:, :, k, 0]  # [rungs seeds]
        axis.plot(abs_rel, color="#b8b8c8", linewidth=1, marker="o", markersize=3)
        axis.plot(abs_rel.mean(1), color="#c0392b", linewidth=2.5, marker="o", label="mean over seeds")
        axis.set_xticks(range(len(RUNGS)), [rung.replace(" ", "\n", 1) for rung in RUNGS], fontsize=8)
        axis.set_title(f"{name} domain")
        axis.grid(axis="y", alpha=0.3)
    axes[0][0].set_ylabel("AbsRel (lower is better)")
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
