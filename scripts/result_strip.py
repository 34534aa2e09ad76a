"""Draws the README's picture: held-out images, the maps of a teacher and of its student, and the truth.

    python scripts/result_strip.py outputs/ladder/teacher_0 outputs/ladder/feature_alignment_0

Images of the unlabeled domain that no run has learned from, evenly spaced in the set. Each map is fitted to
the truth by scale and shift, as for the scores, and has the colour scale of the truth.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from PIL import Image

from depthany import load_model
from depthany.evaluation.example_sheet import stacked, strip
from depthany.evaluation.protocol_files import choose
from depthany.evaluation.run import score_set
from depthany.evaluation.tiles import Tile, tiles_of
from depthany.inference.predictor import Predictor

PROTOCOLS = ("sample_unlabeled_rooms", "sample_unlabeled_streets")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("teacher", type=Path, help="a finished run")
    parser.add_argument("student", type=Path, help="a finished run")
    parser.add_argument("--out", type=Path, default=Path("docs/strip.jpg"))
    parser.add_argument("--each", type=int, default=2, help="number of rooms, and of streets (default 2)")
    args = parser.parse_args()
    models = {"teacher": load_model(args.teacher), "student": load_model(args.student)}
    predictors = [Predictor(model, model.input_size, label=name) for name, model in models.items()]
    strips = []
    for one in choose(list(PROTOCOLS), OmegaConf.create({}), OmegaConf.create({}))[0]:
        dataset = one.open()
        indices = np.linspace(0, len(dataset) - 1, args.each + 2).round().astype(int)[1:-1].tolist()
        found = [
            score_set(each, dataset, one.protocol, indices, convert_images=True).rows for each in predictors
        ]
        for rows in zip(*found):
            by_label = {each.label: row for each, row in zip(predictors, rows)}
            tiles = tiles_of(rows[0].index, by_label, predictors, dataset, one.protocol)
            strips.append(strip(chosen(tiles)))
    Image.fromarray(stacked(strips)).save(args.out, quality=88)
    print(f"wrote {args.out}")


def chosen(tiles: list[Tile]) -> list[Tile]:
    """Returns image, teacher, student and ground truth of the tiles of an image, with these captions."""
    shown = []
    for caption in ("input", "teacher", "student", "ground truth"):
        found = next(
            tile for tile in tiles if tile.caption.startswith(caption) and "error" not in tile.caption
        )
        shown.append(replace(found, caption="image" if caption == "input" else found.caption))
    return shown


if __name__ == "__main__":
    main()
