"""The recipes of Depth Anything V1 and V2 side by side on the bundled data, over several seeds.

    python scripts/v2_ladder.py --seeds 0 1 2

For each seed it trains teacher and student by experiment=sample and by experiment=sample_v2, scores all of
them on images of the labeled and of the unlabeled domain, and writes v2_ladder.md and .json to --out:
AbsRel and delta1, boundary F1 and recall of edges (sky counts as the farthest depth there), and the share of
point pairs in the right order. Finished runs are kept, so the same command continues. It needs a CPU, about
an hour on two cores, or 40 minutes with --ladder: then the runs of V1 are those of scripts/ladder.py, which
trains them with the same settings. --test also scores the test split: for the final table only, never to
choose a setting.
"""

import argparse
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
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

EXPERIMENTS = {"V1": "sample", "V2": "sample_v2"}
STAGES = ("teacher", "student")
V1_OF_LADDER = {"teacher": "teacher", "student": "feature_alignment"}  # stage -> run of scripts/ladder.py
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
        require_runs(args.ladder, V1_OF_LADDER.values(), args.seeds)
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = product(args.seeds, EXPERIMENTS)
        for run in [pool.submit(train_both, recipe, seed, args) for seed, recipe in runs]:
            run.result()
    domains = DOMAINS if args.test else DOMAINS[:-1]
    values = {
        f"{recipe} {stage}": np.array(
            [scores(run_dir(args, recipe, stage, seed), domains, args) for seed in args.seeds]
        )  # [seeds domains metrics]
        for recipe in EXPERIMENTS
        for stage in STAGES
    }
    result = {"seeds": args.seeds, "domains": domains, "metrics": SHOWN}
    result["values"] = {name: array.tolist() for name, array in values.items()}
    (args.out / "v2_ladder.json").write_text(json.dumps(result, indent=2) + "\n")
    text = markdown(values, domains, args.seeds, command_line())
    (args.out / "v2_ladder.md").write_text(text)
    print(text)


def train_both(recipe: str, seed: int, args: argparse.Namespace) -> None:
    """Trains the teacher of a recipe and then its student, unless they are trained already."""
    for stage in STAGES:
        words = [f"stage={stage}", f"experiment={EXPERIMENTS[recipe]}", f"seed={seed}"]
        if stage == "student":
            words.append(f"stage.teacher={run_dir(args, recipe, 'teacher', seed)}")
        train(run_dir(args, recipe, stage, seed), [*words, *args.overrides])


def run_dir(args: argparse.Namespace, recipe: str, stage: str, seed: int) -> Path:
    if recipe == "V1" and args.ladder:
        return Path(args.ladder, f"{V1_OF_LADDER[stage]}_{seed}")
    return Path(args.out, f"{recipe.lower()}_{stage}_{seed}")


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
    pairs = [("V2 teacher", "V1 teacher"), ("V2 student", "V1 student")]
    pairs += [("V1 student", "V1 teacher"), ("V2 student", "V2 teacher")]
    for one, other in pairs:
        cells = difference_cells((values[one] - values[other]).reshape(len(seeds), -1))
        lines.append(f"| {one} - {other} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
