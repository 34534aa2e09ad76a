"""The ablation ladder of the paper (its Table 9) on the bundled data, over several seeds.

    python scripts/ladder.py --seeds 0 1 2

For each seed it trains a teacher and three students: with naive pseudo-labels, + strong perturbations, +
feature alignment. It scores all of them on the validation sets and writes outputs/ladder/ladder.md and
outputs/ladder/ladder.png. Finished runs are kept, so the same command continues. --test also scores the test
split: for the final table only, never to choose a setting. --before compares with the ladder.json of an
earlier ladder, seed by seed.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot
from numpy.typing import NDArray

from depthany import load_model
from depthany.data.folder_depth import FolderDepth
from depthany.metrics.table import METRICS
from depthany.training.validation import evaluate
from seeded_runs import (
    command_line,
    cost_of,
    difference_cells,
    heading_lines,
    mean_cells,
    parser_of_runs,
    train,
)

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
DOMAINS = {"labeled": "labeled/val", "unlabeled": "unlabeled/val", "unlabeled test": "unlabeled/test"}
SCENES: dict[str, dict[str, Any]] = {  # as in configs/data/sample.yaml; a score is the mean of both scenes
    "rooms": {"max_depth": 10},
    "streets": {"max_depth": 65, "sky_value": 65535},
}
SHOWN = ("abs_rel", "delta1")  # of depthany.metrics.table
INPUT_SIZE = 126


@dataclass(frozen=True)
class Table:
    """Scores of all runs; values: [rungs seeds domains metrics], the metrics as in `SHOWN`."""

    domains: list[str]
    seeds: list[int]
    values: NDArray[np.float64]
    minutes: NDArray[np.float64]  # [rungs seeds] wall time of training
    memory_gb: NDArray[np.float64]  # [rungs seeds] largest memory of the training process


def main() -> None:
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    train_all(args)
    table = score_all(args)
    text = markdown(table, command_line())
    if args.before:
        text += compared(table, args.before)
    (args.out / "ladder.md").write_text(text)
    plot(table, args.out / "ladder.png")
    print(text)


def parse_arguments() -> argparse.Namespace:
    parser = parser_of_runs(__doc__ or "", "outputs/ladder")
    parser.add_argument("--before", type=Path, metavar="JSON", help="ladder.json of an earlier ladder")
    return parser.parse_args()


def run_name(rung: str, seed: int) -> str:
    return f"{rung.replace('+ ', '').replace(' ', '_')}_{seed}"


def train_all(args: argparse.Namespace) -> None:
    """Trains every rung for every seed, `args.jobs` at a time; a student begins when its teacher is done."""
    with ThreadPoolExecutor(args.jobs) as pool:
        teachers = {seed: pool.submit(train_rung, "teacher", seed, args) for seed in args.seeds}

        def train_student(rung: str, seed: int) -> None:
            teachers[seed].result()
            train_rung(rung, seed, args)

        students = [(rung, seed) for rung in reversed(RUNGS) if rung != "teacher" for seed in args.seeds]
        for run in [pool.submit(train_student, *student) for student in students]:
            run.result()


def train_rung(rung: str, seed: int, args: argparse.Namespace) -> None:
    """Trains one rung, unless it is trained already."""
    settings = [f"seed={seed}", "stage=teacher"]
    if rung != "teacher":
        teacher = args.out / run_name("teacher", seed)
        settings = [f"seed={seed}", "stage=student", *RUNGS[rung], f"stage.teacher={teacher}"]
    train(args.out / run_name(rung, seed), [*settings, *args.overrides])


def score_all(args: argparse.Namespace) -> Table:
    """Returns the scores of every model, computed in float32, and writes ladder.json."""
    domains = [name for name in DOMAINS if args.test or not name.endswith("test")]
    sets = {
        f"{domain} {scenes}": scene_set(args.data, domain, scenes) for domain in domains for scenes in SCENES
    }
    values = np.empty((len(RUNGS), len(args.seeds), len(domains), len(SCENES), len(SHOWN)))
    minutes, memory_gb = np.empty((2, *values.shape[:2]))
    for i, rung in enumerate(RUNGS):
        for j, seed in enumerate(args.seeds):
            folder = args.out / run_name(rung, seed)
            scores = evaluate(load_model(folder), sets, INPUT_SIZE, metrics=SHOWN)
            flat = [scores[name][metric] for name in sets for metric in SHOWN]
            values[i, j] = np.reshape(flat, values.shape[2:])
            minutes[i, j], memory_gb[i, j] = cost_of(folder)
    result = {"rungs": list(RUNGS), "seeds": args.seeds, "sets": list(sets), "metrics": SHOWN}
    result["values"] = values.reshape(*values.shape[:2], len(sets), len(SHOWN)).tolist()
    (args.out / "ladder.json").write_text(json.dumps(result, indent=2) + "\n")
    return Table(domains, args.seeds, values.mean(3), minutes, memory_gb)


def scene_set(data: Path, domain: str, scenes: str) -> FolderDepth:
    """Returns the held-out images of a domain and kind of scenes, with their depth."""
    root = str(data / DOMAINS[domain])
    return FolderDepth(root, f"images/{scenes}", f"depth/{scenes}", 1000, **SCENES[scenes])


def headings() -> list[str]:
    """Returns the headings of the metrics shown."""
    return [METRICS[name].heading for name in SHOWN]


def column_names(table: Table) -> list[str]:
    """Returns the headings of the scores."""
    return [f"{name} {metric}" for name in table.domains for metric in headings()]


def markdown(table: Table, command: str) -> str:
    """Returns tables of mean and standard deviation over seeds, and of the differences between rungs."""
    columns = [*column_names(table), "minutes", "GB"]
    lines = [f"`{command}`", "", *heading_lines(columns)]
    for i, rung in enumerate(RUNGS):
        cells = mean_cells(table.values[i].reshape(len(table.seeds), -1))
        cells += [f"{table.minutes[i].mean():.1f}", f"{table.memory_gb[i].max():.1f}"]
        lines.append(f"| {rung} | " + " | ".join(cells) + " |")
    text = "\n".join(lines) + f"\n\nMean ± standard deviation over seeds {table.seeds}.\n"
    rungs = list(RUNGS)
    to_teacher = {rung: table.values[i] - table.values[0] for i, rung in enumerate(rungs) if i}
    to_last = {rung: table.values[i] - table.values[i - 1] for i, rung in enumerate(rungs) if i}
    text += differences(table, "the teacher of the same seed", to_teacher)
    text += differences(table, "the rung above, same seed", to_last)
    change = table.values[-1] / table.values[0] - 1  # [seeds domains metrics]
    for domain, shares in zip(table.domains, change[..., 0].T):
        shown = f"{shares.mean():+.1%} ({shares.min():+.1%} to {shares.max():+.1%})"
        text += f"\n{headings()[0]} of the last rung against its teacher, {domain}: {shown}."
    return text + "\n"


def differences(table: Table, what: str, rows: dict[str, NDArray[np.float64]]) -> str:
    """Returns a table of differences: mean, and the smallest and largest over the seeds.

    Args:
        rows: name of the row -> [seeds domains metrics].
    """
    lines = ["", f"Difference to {what}:", "", *heading_lines(column_names(table))]
    for name, values in rows.items():
        cells = difference_cells(values.reshape(len(table.seeds), -1))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def compared(table: Table, path: Path) -> str:
    """Returns the table of differences to an earlier ladder that scored the same sets for the same seeds."""
    before = json.loads(path.read_text())
    sets = [f"{domain} {scenes}" for domain in table.domains for scenes in SCENES]
    if before["seeds"] != table.seeds or before["sets"] != sets or before["rungs"] != list(RUNGS):
        raise SystemExit(f"{path} has other seeds, sets or rungs: pass the ladder.json of the same ladder")
    shape = (len(RUNGS), len(table.seeds), len(table.domains), len(SCENES), len(SHOWN))
    values = np.reshape(before["values"], shape).mean(3)
    return differences(table, "the ladder before", dict(zip(RUNGS, table.values - values)))


def plot(table: Table, path: Path) -> None:
    """Draws each metric by rung for each domain: a thin line per seed, a thick one for the mean."""
    n = len(table.domains)
    figure, axes = pyplot.subplots(len(SHOWN), n, figsize=(4.2 * n, 5.6), sharex=True, squeeze=False)
    labels = ["teacher", "naive\nstudent", "+ pertur-\nbations", "+ feature\nalignment"]
    for row, (name, heading) in enumerate(zip(SHOWN, headings())):
        for axis, domain, scores in zip(axes[row], table.domains, np.moveaxis(table.values[..., row], 2, 0)):
            axis.plot(scores, color="#b8b8c8", linewidth=1, marker="o", markersize=3)  # [rungs seeds]
            axis.plot(scores.mean(1), color="#c0392b", linewidth=2.5, marker="o", label="mean over seeds")
            axis.set_xticks(range(len(RUNGS)), labels, fontsize=8)
            axis.grid(axis="y", alpha=0.3)
            if row == 0:
                axis.set_title(domain)
        axes[row][0].set_ylabel(f"{heading} ({METRICS[name].better} is better)")
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
