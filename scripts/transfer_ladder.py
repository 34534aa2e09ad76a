"""What the encoders know of classes (the paper's section 4.5) on the bundled data, over several seeds.

    python scripts/ladder.py --seeds 0 1 2
    python scripts/transfer_ladder.py --seeds 0 1 2

It trains a linear probe on the frozen encoder and fine-tunes a DPT head, from the bare encoder and from the
teacher and the student of scripts/ladder.py with the same seed; beside them DeepLab V3 with MobileNetV2 from
random weights. Training sees the labeled domain; mIoU and pixel accuracy are those of both domains. It writes
transfer_ladder.md, .png and .json to --out. Finished runs are kept, so the same command continues. --test
also scores the test split: for the final table only, never to choose a setting.
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
from depthany.data.folder_masks import FolderMasks
from depthany.metrics.table import METRICS
from depthany.training.validation import evaluate
from ladder import DOMAINS
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

STARTS = {"bare encoder": None, "teacher": "teacher", "student": "feature_alignment"}  # runs of ladder.py
WAYS = {
    "linear probe, frozen": ["head=linear", "model.freeze=encoder"],
    "DPT, fine-tuned": ["head=dpt"],
}
DEEPLAB = "DeepLab V3, MobileNetV2, random"
OF_DEEPLAB = [  # Google's network
    "model=mobilenetv2",
    "model.encoder={padding: same, bn_eps: 1e-3, mean: [0.5,0.5,0.5], std: [0.5,0.5,0.5]}",
    "head=deeplab",
    "model.pretrained=false",
    "model.init=null",
    "crop_size=129",
]
SHOWN = ("miou", "pixel_accuracy")  # of depthany.metrics.table


@dataclass(frozen=True)
class Table:
    """Scores of all runs; values: [rows seeds domains metrics], the metrics as in `SHOWN`."""

    domains: list[str]
    seeds: list[int]
    values: NDArray[np.float64]
    minutes: NDArray[np.float64]  # [rows seeds] wall time of training
    millions: list[float]  # of parameters, per row


def rows() -> list[tuple[str, str | None]]:
    """Returns the rows of the table: way and start, the start None for DeepLab."""
    return [*product(WAYS, STARTS), (DEEPLAB, None)]


def main() -> None:
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = [pool.submit(train_one, *row, seed, args) for seed in args.seeds for row in rows()]
        for run in runs:
            run.result()
    table = score_all(args)
    text = markdown(table, command_line())
    (args.out / "transfer_ladder.md").write_text(text)
    plot(table, args.out / "transfer_ladder.png")
    print(text)


def parse_arguments() -> argparse.Namespace:
    parser = parser_of_runs(__doc__ or "", "outputs/transfer_ladder")
    parser.add_argument(
        "--ladder", type=Path, default=Path("outputs/ladder"), help="--out of scripts/ladder.py"
    )
    args = parser.parse_args()
    require_runs(args.ladder, filter(None, STARTS.values()), args.seeds)
    return args


def title(way: str, start: str | None) -> str:
    """Returns the name of a row."""
    return way if start is None else f"{way}, {start}"


def folder_of(way: str, start: str | None, seed: int, out: Path) -> Path:
    """Returns the folder of a run."""
    return out / f"{title(way, start).replace(', ', '_').replace(' ', '_')}_{seed}"


def train_one(way: str, start: str | None, seed: int, args: argparse.Namespace) -> None:
    """Trains one row for one seed, unless it is done already."""
    settings = ["stage=segmentation", f"seed={seed}"]
    if start is None:
        settings += OF_DEEPLAB
    else:
        run = STARTS[start]
        init = args.ladder / f"{run}_{seed}" if run else "null"
        settings += [*WAYS[way], f"model.init={init}"]
    train(folder_of(way, start, seed, args.out), [*settings, *args.overrides])


def score_all(args: argparse.Namespace) -> Table:
    """Returns the scores of every model, computed in float32, and writes transfer_ladder.json."""
    domains = [name for name in DOMAINS if args.test or not name.endswith("test")]
    sets = {
        domain: FolderMasks(str(args.data / DOMAINS[domain]), classes_file=str(args.data / "classes.yaml"))
        for domain in domains
    }
    values = np.empty((len(rows()), len(args.seeds), len(domains), len(SHOWN)))
    minutes, millions = np.empty(values.shape[:2]), []
    for i, row in enumerate(rows()):
        for j, seed in enumerate(args.seeds):
            folder = folder_of(*row, seed, args.out)
            model = load_model(folder)
            scores = evaluate(model, sets, 126 if row[1] else 129, metrics=SHOWN)
            values[i, j] = [[scores[domain][metric] for metric in SHOWN] for domain in domains]
            minutes[i, j] = cost_of(folder)[0]
        millions.append(sum(parameter.numel() for parameter in model.parameters()) / 1e6)
    result = {"rows": [title(*row) for row in rows()], "seeds": args.seeds, "domains": domains}
    result |= {"metrics": SHOWN, "values": values.tolist()}
    (args.out / "transfer_ladder.json").write_text(json.dumps(result, indent=2) + "\n")
    return Table(domains, args.seeds, values, minutes, millions)


def markdown(table: Table, command: str) -> str:
    """Returns a table of mean and spread over seeds, and one of the differences to the bare encoder."""
    scores = [f"{name} {METRICS[metric].heading}" for name in table.domains for metric in SHOWN]
    lines = [f"`{command}`", "", *heading_lines([*scores, "M parameters", "minutes"])]
    to_bare = ["", "Difference to the bare encoder of the same seed:", "", *heading_lines(scores)]
    bare = 0
    for i, (way, start) in enumerate(rows()):
        runs = table.values[i].reshape(len(table.seeds), -1)  # [seeds domains*metrics]
        cells = [*mean_cells(runs), f"{table.millions[i]:.2f}", f"{table.minutes[i].mean():.1f}"]
        lines.append(f"| {title(way, start)} | " + " | ".join(cells) + " |")
        if start is not None and STARTS[start] is None:
            bare = i
        elif start is not None:
            change = runs - table.values[bare].reshape(len(table.seeds), -1)
            to_bare.append(f"| {title(way, start)} | " + " | ".join(difference_cells(change)) + " |")
    lines += ["", f"Mean ± standard deviation over seeds {table.seeds}."]
    return "\n".join([*lines, *to_bare]) + "\n"


def plot(table: Table, path: Path) -> None:
    """Draws both metrics by start: a column for each domain, a colour for each way, DeepLab as a line."""
    n = len(table.domains)
    figure, axes = pyplot.subplots(len(SHOWN), n, figsize=(3.6 * n, 5.6), sharex=True, squeeze=False)
    for (row, metric), (d, domain) in product(enumerate(SHOWN), enumerate(table.domains)):
        axis = axes[row][d]
        for k, (way, colour) in enumerate(zip(WAYS, ("#c0392b", "#2c5f8a"))):
            of_way = slice(k * len(STARTS), (k + 1) * len(STARTS))
            scores = table.values[of_way, :, d, row]  # [starts seeds]
            axis.plot(scores, color=colour, linewidth=0.8, alpha=0.35, marker="o", markersize=3)
            axis.plot(scores.mean(1), color=colour, linewidth=2.5, marker="o", label=way)
        axis.axhline(table.values[-1, :, d, row].mean(), color="#777777", linestyle="--", label=DEEPLAB)
        axis.set_xticks(range(len(STARTS)), [start.replace(" ", "\n") for start in STARTS], fontsize=8)
        axis.grid(axis="y", alpha=0.3)
        if row == 0:
            axis.set_title(domain, fontsize=10)
        if d == 0:
            axis.set_ylabel(METRICS[metric].heading)
    axes[0][0].legend(frameon=False, fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
