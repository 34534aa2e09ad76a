"""The recipes of Depth Anything V1 and V2 side by side on the bundled data, over several seeds.

    python scripts/v2_ladder.py --seeds 0 1 2

For each seed it trains teacher and student by experiment=sample and by experiment=sample_v2, and a V1 teacher
with the gradient-matching loss in addition, the one change of V2 that should sharpen edges. It scores all of
them on images of the labeled and of the unlabeled domain, and writes v2_ladder.md and .json to --out: AbsRel
and delta1, boundary F1 and recall of edges (sky counts as the farthest depth there), and the share of point
pairs in the right order. Finished runs are kept, so the same command continues. It needs a CPU, about an hour
on two cores. --ladder takes the runs of V1 from scripts/ladder.py, which trains them with the same settings
if both scripts get the same overrides. --test also scores the test split: for the final table only, never to
choose a setting.
"""

import argparse
import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from depthany import load_model
from depthany.evaluation.protocol_files import choose
from depthany.evaluation.results import summary
from depthany.evaluation.run import score_set
from depthany.inference.predictor import Predictor
from depthany.metrics.table import METRICS
from seeded_runs import (
    command_line,
    difference_cells,
    heading_lines,
    mean_cells,
    parser_of_runs,
    require_runs,
    train,
)

ROWS = {  # name -> row of its teacher, None for a teacher; and settings
    "V1 teacher": (None, ["stage=teacher"]),
    "V1 student": ("V1 teacher", ["stage=student"]),
    "V2 teacher": (None, ["stage=teacher", "experiment=sample_v2"]),
    "V2 student": ("V2 teacher", ["stage=student", "experiment=sample_v2"]),
    "V1 teacher + gradient": (None, ["stage=teacher", "stage.terms.gradient=2"]),
}
COMPARED = (  # each with the second one
    ("V1 teacher + gradient", "V1 teacher"),
    ("V2 teacher", "V1 teacher"),
    ("V2 student", "V1 student"),
    ("V1 student", "V1 teacher"),
    ("V2 student", "V2 teacher"),
)
OF_LADDER = {"V1 teacher": "teacher", "V1 student": "feature_alignment"}  # row -> run of scripts/ladder.py
DOMAINS = ("labeled", "unlabeled", "test")
SHOWN = ("abs_rel", "delta1", "boundary_f1", "edge_recall_10", "accuracy")
# protocols of a domain -> what is changed in them; the score of a domain is the mean over its protocols
SCORED: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("sample_{}_rooms", "sample_{}_streets"), {"metrics": ["abs_rel", "delta1"]}),
    (
        ("sample_{}_rooms", "sample_{}_streets"),
        {"metrics": ["boundary_f1", "edge_recall_10"], "truth_beyond": "clip"},
    ),
    (("ordinal_sample_{}",), {}),
)


def main() -> None:
    parser = parser_of_runs(__doc__ or "", "outputs/v2_ladder")
    parser.add_argument("--limit", type=int, help="number of images to score per set, for a quick look")
    parser.add_argument("--ladder", type=Path, help="--out of scripts/ladder.py: its runs are those of V1")
    args = parser.parse_args()
    if args.ladder:
        require_runs(args.ladder, OF_LADDER.values(), args.seeds)
    train_all(args)
    domains = DOMAINS if args.test else DOMAINS[:-1]
    values = {
        row: np.array([scores(run_dir(args, row, seed), domains, args) for seed in args.seeds])
        for row in ROWS  # [seeds domains metrics]
    }
    result = {"seeds": args.seeds, "domains": domains, "metrics": SHOWN}
    result["values"] = {name: array.tolist() for name, array in values.items()}
    (args.out / "v2_ladder.json").write_text(json.dumps(result, indent=2) + "\n")
    text = markdown(values, domains, args.seeds, command_line())
    (args.out / "v2_ladder.md").write_text(text)
    print(text)


def train_all(args: argparse.Namespace) -> None:
    """Trains every row for every seed, `args.jobs` at a time; a student begins when its teacher is done."""
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = dict[tuple[str, int], Future[None]]()

        def train_row(row: str, seed: int) -> None:
            teacher, settings = ROWS[row]
            words = [*settings, f"seed={seed}"]
            if teacher is not None:
                runs[teacher, seed].result()
                words.append(f"stage.teacher={run_dir(args, teacher, seed)}")
            train(run_dir(args, row, seed), [*words, *args.overrides])

        for row, seed in product(ROWS, args.seeds):  # a teacher before its student
            runs[row, seed] = pool.submit(train_row, row, seed)
        for run in runs.values():
            run.result()


def run_dir(args: argparse.Namespace, row: str, seed: int) -> Path:
    """Returns the folder of a run."""
    if args.ladder and row in OF_LADDER:
        return Path(args.ladder, f"{OF_LADDER[row]}_{seed}")
    return Path(args.out, f"{row.lower().replace(' + ', '_').replace(' ', '_')}_{seed}")


def scores(folder: Path, domains: tuple[str, ...], args: argparse.Namespace) -> list[list[float]]:
    """Returns the scores [domains metrics] of a trained model, in the order of SHOWN."""
    model = load_model(folder).eval()
    predictor = Predictor(model, model.input_size)
    found = [of_domain(predictor, domain, args) for domain in domains]
    return [[of_one[name] for name in SHOWN] for of_one in found]


def of_domain(predictor: Predictor, domain: str, args: argparse.Namespace) -> dict[str, float]:
    """Returns the scores on images of a domain, by metric."""
    found = dict[str, float]()
    for names, changes in SCORED:
        words = [name.format(domain) for name in names]
        chosen, _ = choose(words, OmegaConf.create({}), OmegaConf.create(changes))
        of_sets = list[Mapping[str, float]]()
        for one in chosen:
            root = args.data / str(one.dataset["root"]).rpartition("data/sample/")[2]
            dataset = replace(one, dataset=one.dataset | {"root": str(root)}).open()
            indices = range(len(dataset) if args.limit is None else min(args.limit, len(dataset)))
            rows = score_set(predictor, dataset, one.protocol, indices, convert_images=True).rows
            of_sets.append(summary(rows, one.protocol))
        for name in chosen[0].protocol.metrics:
            found[name] = float(np.mean([of_set[name] for of_set in of_sets]))
    return found


def markdown(
    values: Mapping[str, NDArray[np.float64]], domains: tuple[str, ...], seeds: list[int], command: str
) -> str:
    """Returns tables of mean and standard deviation over the seeds, and of differences seed by seed."""
    columns = [f"{domain} {METRICS[name].heading}" for domain in domains for name in SHOWN]
    lines = [f"`{command}`", "", *heading_lines(columns)]
    for name, array in values.items():
        lines.append(f"| {name} | " + " | ".join(mean_cells(array.reshape(len(seeds), -1))) + " |")
    lines += ["", f"Mean ± standard deviation over seeds {seeds}.", "", "Difference, same seed:", ""]
    lines += heading_lines(columns)
    for one, other in COMPARED:
        cells = difference_cells((values[one] - values[other]).reshape(len(seeds), -1))
        lines.append(f"| {one} - {other} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
