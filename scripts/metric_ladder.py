"""Metric depth from three starts (the paper's Table 11) on the bundled data, over several seeds.

    python scripts/ladder.py --seeds 0 1 2
    python scripts/metric_ladder.py --seeds 0 1 2

It fine-tunes the bare encoder, and the teacher and the student of scripts/ladder.py with the same seed, to
metres: with bins and with a sigmoid, on rooms and on streets. Training sees only labeled images; scores, in
metres without any fit, are those of the labeled and of the unlabeled appearance. It writes metric_ladder.md,
.png and .json to --out. Finished runs are kept, so the same command continues. --test also scores the test
split: for the final table only, never to choose a setting. --heads sigmoid leaves the bins out.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot
from numpy.typing import NDArray

from depthany import load_model
from depthany.metrics.table import METRICS
from depthany.training.validation import evaluate
from ladder import DOMAINS, INPUT_SIZE, SCENES, SHOWN, headings, scene_set
from seeded_runs import (
    command_line,
    cost_of,
    difference_cells,
    heading_lines,
    mean_cells,
    parser_of_runs,
    require_runs,
    train,
)

STARTS = {  # name -> run of scripts/ladder.py, and settings; the bare encoder's decoder is as new as its head
    "bare encoder": (None, ["model.init=null", "optimizer.lr_factors.decoder=1"]),
    "teacher": ("teacher", []),
    "student": ("feature_alignment", []),
}
HEADS = {"bins": "#c0392b", "sigmoid": "#2c5f8a"}  # name -> colour in the plot


@dataclass(frozen=True)
class Table:
    """Scores of all runs; values: [scenes heads starts seeds domains metrics], the metrics as in `SHOWN`."""

    heads: list[str]
    domains: list[str]
    seeds: list[int]
    values: NDArray[np.float64]
    minutes: NDArray[np.float64]  # [scenes heads starts seeds] wall time of training
    memory_gb: NDArray[np.float64]


def main() -> None:
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    runs = list(product(SCENES, args.heads, STARTS, args.seeds))
    with ThreadPoolExecutor(args.jobs) as pool:
        for run in [pool.submit(train_one, *run, args) for run in runs]:
            run.result()
    table = score_all(args)
    text = markdown(table, command_line())
    (args.out / "metric_ladder.md").write_text(text)
    plot(table, args.out / "metric_ladder.png")
    print(text)


def parse_arguments() -> argparse.Namespace:
    parser = parser_of_runs(__doc__ or "", "outputs/metric_ladder")
    parser.add_argument(
        "--ladder", type=Path, default=Path("outputs/ladder"), help="--out of scripts/ladder.py"
    )
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS), help="default: both")
    args = parser.parse_args()
    require_runs(args.ladder, (run for run, _ in STARTS.values() if run), args.seeds)
    return args


def folder_of(scenes: str, head: str, start: str, seed: int, out: Path) -> Path:
    """Returns the folder of a run."""
    return out / f"{scenes}_{head}_{start.replace(' ', '_')}_{seed}"


def train_one(scenes: str, head: str, start: str, seed: int, args: argparse.Namespace) -> None:
    """Fine-tunes one start, unless it is done already."""
    run, settings = STARTS[start]
    settings = [
        "stage=metric",
        f"experiment=sample_metric_{scenes}",
        f"head={head}",
        f"seed={seed}",
        *settings,
    ]
    if run:
        settings.append(f"model.init={args.ladder / f'{run}_{seed}'}")
    train(folder_of(scenes, head, start, seed, args.out), [*settings, *args.overrides])


def score_all(args: argparse.Namespace) -> Table:
    """Returns the scores of every model, computed in float32, and writes metric_ladder.json."""
    domains = [name for name in DOMAINS if args.test or not name.endswith("test")]
    grid = (len(SCENES), len(args.heads), len(STARTS), len(args.seeds))
    values = np.empty((*grid, len(domains), len(SHOWN)))
    costs = np.empty((*grid, 2))
    for place, (scenes, head, start, seed) in zip(
        np.ndindex(grid), product(SCENES, args.heads, STARTS, args.seeds)
    ):
        folder = folder_of(scenes, head, start, seed, args.out)
        sets = {domain: scene_set(args.data, domain, scenes) for domain in domains}
        scores = evaluate(load_model(folder), sets, INPUT_SIZE, metrics=SHOWN)
        values[place] = [[scores[domain][metric] for metric in SHOWN] for domain in domains]
        costs[place] = cost_of(folder)
    result = {
        "scenes": list(SCENES),
        "heads": args.heads,
        "starts": list(STARTS),
        "seeds": args.seeds,
        "domains": domains,
        "metrics": SHOWN,
        "values": values.tolist(),
    }
    (args.out / "metric_ladder.json").write_text(json.dumps(result, indent=2) + "\n")
    return Table(args.heads, domains, args.seeds, values, costs[..., 0], costs[..., 1])


def markdown(table: Table, command: str) -> str:
    """Returns a table of mean and spread over seeds, and one of the differences to the bare encoder."""
    scores = [f"{name} {metric}" for name in table.domains for metric in headings()]
    lines = [f"`{command}`", "", *heading_lines([*scores, "minutes", "GB"])]
    to_bare = ["", "Difference to the bare encoder of the same seed:", "", *heading_lines(scores)]
    for (i, scenes), (j, head), (k, start) in product(
        enumerate(SCENES), enumerate(table.heads), enumerate(STARTS)
    ):
        name, runs = f"{scenes}, {head}, {start}", table.values[i, j, k]  # [seeds domains metrics]
        cells = mean_cells(runs.reshape(len(table.seeds), -1))
        cells += [f"{table.minutes[i, j, k].mean():.1f}", f"{table.memory_gb[i, j, k].max():.1f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        if k:
            change = (runs - table.values[i, j, 0]).reshape(len(table.seeds), -1)
            to_bare.append(f"| {name} | " + " | ".join(difference_cells(change)) + " |")
    lines += ["", f"Mean ± standard deviation over seeds {table.seeds}; in metres, without any fit."]
    return "\n".join([*lines, *to_bare]) + "\n"


def plot(table: Table, path: Path) -> None:
    """Draws each metric by start: a column for each kind of scenes and domain, a colour for each head."""
    columns = list(product(enumerate(SCENES), enumerate(table.domains)))
    size = (3.2 * len(columns), 5.6)
    figure, axes = pyplot.subplots(len(SHOWN), len(columns), figsize=size, sharex=True, squeeze=False)
    for row, (metric, heading) in enumerate(zip(SHOWN, headings())):
        for axis, ((i, scenes), (d, domain)) in zip(axes[row], columns):
            for j, head in enumerate(table.heads):
                colour = HEADS[head]
                scores = table.values[i, j, :, :, d, row]  # [starts seeds]
                axis.plot(scores, color=colour, linewidth=0.8, alpha=0.35, marker="o", markersize=3)
                axis.plot(scores.mean(1), color=colour, linewidth=2.5, marker="o", label=head)
            axis.set_xticks(range(len(STARTS)), [start.replace(" ", "\n") for start in STARTS], fontsize=8)
            axis.grid(axis="y", alpha=0.3)
            if row == 0:
                axis.set_title(f"{scenes}, {domain}", fontsize=10)
        axes[row][0].set_ylabel(f"{heading} ({METRICS[metric].better} is better)")
    axes[0][0].legend(frameon=False, fontsize=8, title="mean over seeds", title_fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
