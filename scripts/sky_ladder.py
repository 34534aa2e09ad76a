"""What masks of the sky are worth (the paper's section 3.1) on the bundled streets, over several seeds.

    python scripts/ladder.py --seeds 0 1 2
    python scripts/transfer_ladder.py --seeds 0 1 2
    python scripts/sky_ladder.py --seeds 0 1 2

For each seed it trains three teachers on the labeled streets: with the sky of the labels, without any sky,
and with masks that `depthany.sky` makes by the segmentation model of scripts/transfer_ladder.py. That model
has learned from these streets, so the overlap of masks and the sky of the labels is shown for held-out
streets, too. It scores depth where there is one (sky counts in neither fit nor score), and pairs of a sky
pixel and another pixel of the same image: the share in which the sky has the smaller disparity. It writes
sky_ladder.md and .json to --out. Finished runs are kept. --test also scores the test split: for the final
table only.
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import rankdata

from depthany import load_model
from depthany.data.folder_depth import FolderDepth
from depthany.models.model import DenseModel
from depthany.training.validation import evaluate
from ladder import DOMAINS, INPUT_SIZE, scene_set
from seeded_runs import (
    command_line,
    difference_cells,
    heading_lines,
    mean_cells,
    parser_of_runs,
    require_runs,
    train,
)

SEGMENTER = "DPT_fine-tuned_student"  # of transfer_ladder.py
ROWS = ("sky of the labels", "no sky", "sky of predicted masks")
SHOWN = ("AbsRel", "delta1", "sky farther")
STREETS = ["images/streets", "depth/streets"]
TRAIN, NEW = "labeled/train", "labeled/val"  # streets of the teachers; streets that no model has seen


def main() -> None:
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    masks = {seed: make_masks(seed, TRAIN, args.out / f"masks_{seed}", args) for seed in args.seeds}
    with ThreadPoolExecutor(args.jobs) as pool:
        for run in [pool.submit(train_one, *each, masks, args) for each in product(args.seeds, ROWS)]:
            run.result()
    domains = [name for name in DOMAINS if args.test or not name.endswith("test")]
    values = np.array(
        [[scores(folder_of(row, seed, args.out), domains, args.data) for seed in args.seeds] for row in ROWS]
    )  # [rows seeds domains metrics]
    overlaps = {TRAIN: [overlap(masks[seed], args.data / TRAIN) for seed in args.seeds], NEW: []}
    for seed in args.seeds:
        of_new = make_masks(seed, NEW, args.out / f"masks_of_new_{seed}", args)
        overlaps[NEW].append(overlap(of_new, args.data / NEW))
    result = {"rows": ROWS, "seeds": args.seeds, "domains": domains, "metrics": SHOWN}
    result |= {"values": values.tolist(), "overlap": overlaps}
    (args.out / "sky_ladder.json").write_text(json.dumps(result, indent=2) + "\n")
    text = markdown(values, domains, overlaps, args.seeds)
    (args.out / "sky_ladder.md").write_text(text)
    print(text)


def parse_arguments() -> argparse.Namespace:
    parser = parser_of_runs(__doc__ or "", "outputs/sky_ladder")
    parser.add_argument(
        "--transfer", type=Path, default=Path("outputs/transfer_ladder"), help="--out of transfer_ladder.py"
    )
    args = parser.parse_args()
    require_runs(args.transfer, [SEGMENTER], args.seeds, "transfer_ladder", "--transfer")
    return args


def make_masks(seed: int, split: str, out: Path, args: argparse.Namespace) -> Path:
    """Writes a mask for each street of a split by the segmentation model of a seed; returns their folder."""
    words = [f"checkpoint={args.transfer / f'{SEGMENTER}_{seed}'}", f"out={out}"]
    words.append(f"images={args.data / split / STREETS[0]}")
    subprocess.run([sys.executable, "-m", "depthany.sky", *words], check=True)
    return out


def folder_of(row: str, seed: int, out: Path) -> Path:
    """Returns the folder of a run."""
    return out / f"{row.replace(' ', '_')}_{seed}"


def train_one(seed: int, row: str, masks: dict[int, Path], args: argparse.Namespace) -> None:
    """Trains a teacher on labeled streets, unless it is done already."""
    sample = "data.labeled.sample"
    settings = [
        "stage=teacher",
        f"seed={seed}",
        *(f"data.val.{domain}_rooms.root=null" for domain in ("labeled", "unlabeled")),
    ]
    settings += [f"{sample}.{key}={value}" for key, value in zip(("images", "depth"), STREETS)]
    if row != ROWS[0]:
        settings.append(f"{sample}.sky_value=null")  # 65.5 m, beyond max_depth: no label
    if row == ROWS[2]:
        settings.append(f"{sample}.sky_masks={masks[seed].resolve()}")
    train(folder_of(row, seed, args.out), [*settings, *args.overrides])


def scores(folder: Path, domains: list[str], data: Path) -> list[list[float]]:
    """Returns the scores [domains metrics] of a trained model, in the order of SHOWN."""
    model, found = load_model(folder), []
    for domain in domains:
        streets = scene_set(data, domain, "streets")
        of_depth = evaluate(model, {domain: streets}, INPUT_SIZE, metrics=("abs_rel", "delta1"))[domain]
        found.append([of_depth["abs_rel"], of_depth["delta1"], sky_is_farther(model, streets)])
    return found


def sky_is_farther(model: DenseModel, streets: FolderDepth) -> float:
    """Returns the share of pairs (sky, other pixel) in the right order, the mean over images with both."""
    shares = []
    for index in range(len(streets)):
        sample = streets.read(index)
        sky, disparity = sample.labels.sky, model.infer(sample.image, INPUT_SIZE)  # [h w]
        if sky is not None and sky.any() and not sky.all():
            shares.append(share_in_order(disparity[sky], disparity[~sky]))
    return float(np.mean(shares))


def share_in_order(smaller: NDArray[np.floating], larger: NDArray[np.floating]) -> float:
    """Returns the share of pairs of values [n] and [m] in which the first is smaller; ties count half."""
    ranks = rankdata(np.concatenate([larger, smaller]))[: larger.size]
    wins = ranks.sum() - larger.size * (larger.size + 1) / 2
    return float(wins / (larger.size * smaller.size))


def overlap(masks: Path, split: Path) -> float:
    """Returns intersection over union of predicted masks and the sky of the labels, over all pixels."""
    streets = FolderDepth(str(split), *STREETS, 1000, max_depth=65, sky_value=65535)
    both = either = 0
    for index in range(len(streets)):
        sky = streets.labels(index).sky
        predicted = np.asarray(Image.open(masks / f"{Path(streets.name(index)).stem}.png")) != 0
        both, either = both + int((sky & predicted).sum()), either + int((sky | predicted).sum())
    return both / either


def markdown(
    values: NDArray[np.float64], domains: list[str], overlaps: dict[str, list[float]], seeds: list[int]
) -> str:
    """Returns a table of mean and spread over seeds, and one of the differences to the sky of the labels."""
    columns = [f"{domain} {metric}" for domain in domains for metric in SHOWN]
    lines = [f"`{command_line()}`", "", *heading_lines(columns)]
    to_first = ["", f"Difference to {ROWS[0]}, same seed:", "", *heading_lines(columns)]
    for i, row in enumerate(ROWS):
        runs = values[i].reshape(len(seeds), -1)
        lines.append(f"| {row} | " + " | ".join(mean_cells(runs)) + " |")
        if i:
            change = runs - values[0].reshape(len(seeds), -1)
            to_first.append(f"| {row} | " + " | ".join(difference_cells(change)) + " |")
    found = "; ".join(
        f"{split} {', '.join(f'{share:.3f}' for share in shares)}" for split, shares in overlaps.items()
    )
    lines += [
        "",
        f"Mean ± standard deviation over seeds {seeds}. IoU of masks and sky of the labels: {found}.",
    ]
    return "\n".join([*lines, *to_first]) + "\n"


if __name__ == "__main__":
    main()
