"""Measures what an encoder's features are worth: linear probes of depth and of classes on held-out images.

    python scripts/probe_encoder.py data/sample/encoder_vitt.safetensors outputs/encoder_vitt.safetensors

A ridge regression from the final patch tokens, fitted on labeled/train, predicts for each patch the logarithm
of its median depth and the class that most of its pixels have; its strength is chosen on labeled/val. The
table has the scores on labeled/val and on unlabeled/val, so the second shows how the features cope with
another look. It also has the cosine between tokens of different images, which says whether the features
spread. Deterministic; seconds per encoder. No test image is used.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from depthany.data.images import read_image
from depthany.models.dinov2 import PATCH, Dinov2
from depthany.models.files.weights import load_encoder_weights
from depthany.models.preprocess import Preprocessing

SIDE = 126  # pixels of the shorter side
SKY_MM, SKY_M = 65535, 80.0  # the sky in the files, and its depth here: the largest of all
STRENGTHS = 10.0 ** np.arange(-1, 5)  # of the ridge regressions
TRAIN, HELD_OUT = "labeled/train", ("labeled/val", "unlabeled/val")


@dataclass(frozen=True)
class Patches:
    """All patches of a split: tokens [n c], log_depth [n] of metres, classes [n]."""

    tokens: NDArray[np.float64]
    log_depth: NDArray[np.float64]
    classes: NDArray[np.int64]


def main() -> None:
    """Prints a table with a row for each encoder."""
    args = arguments()
    torch.set_num_threads(args.threads)
    columns = [f"{split} {name}" for split in HELD_OUT for name in ("AbsRel", "delta1", "accuracy", "mIoU")]
    print("| encoder | " + " | ".join(columns) + " | median cos | cos > .85 |")
    print("|---|" + "---|" * (len(columns) + 2))
    try:
        for path in args.encoders:
            scores = scores_of(path, args.data)
            print(f"| {path} | " + " | ".join(f"{score:.3f}" for score in scores) + " |", flush=True)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def scores_of(path: Path, data: Path) -> list[float]:
    """Returns the numbers of a row of the table."""
    encoder = Dinov2("vitt").eval()
    load_encoder_weights(encoder, path)
    splits = {split: read_split(encoder, data / split) for split in (TRAIN, *HELD_OUT)}
    cosine = cosines(splits[HELD_OUT[1]].tokens)
    scores = [score for split in HELD_OUT for score in probe(splits, split)]
    return [*scores, float(np.median(cosine)), float((cosine > 0.85).mean())]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("encoders", type=Path, nargs="+", help=".safetensors of vitt encoders")
    parser.add_argument("--data", type=Path, default=Path("data/sample"))
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


@torch.no_grad()
def read_split(encoder: Dinov2, folder: Path) -> Patches:
    """Returns the patches of all images of a split, each image at a shorter side of `SIDE` pixels."""
    tokens, depths, classes = [], [], []
    paths = sorted((folder / "images").rglob("*.jpg"))
    if not paths:
        raise ValueError(f"{folder / 'images'} has no .jpg: pass --data with a folder like data/sample")
    for path in paths:
        name = path.relative_to(folder / "images").with_suffix(".png")
        image = read_image(path)
        height, width = image.shape[:2]
        scale = SIDE / min(height, width)
        size = [round(side * scale / PATCH) * PATCH for side in (width, height)]
        pixels = torch.from_numpy(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
        level = encoder(Preprocessing().normalise(pixels.permute(2, 0, 1)[None]))[-1]  # [1 c p q]
        tokens.append(level[0].flatten(1).T.double().numpy())
        depth_mm = np.array(Image.open(folder / "depth" / name))
        depth_m = np.where(depth_mm == SKY_MM, SKY_M, depth_mm / 1000)
        classes_seen = np.array(
            Image.open(folder / "masks" / name)
        )  # OpenCV would return the palette's colours
        rows, columns = level.shape[-2:]
        for plane, found in ((depth_m, depths), (classes_seen, classes)):
            resized = cv2.resize(plane, (columns * PATCH, rows * PATCH), interpolation=cv2.INTER_NEAREST)
            patches = resized.reshape(rows, PATCH, columns, PATCH).transpose(0, 2, 1, 3)
            found.append(patches.reshape(rows * columns, -1))
    log_depth = np.log(np.median(np.concatenate(depths), axis=1))
    labels = np.concatenate(classes)
    counts = np.stack([(labels == k).sum(1) for k in range(labels.max() + 1)], 1)
    return Patches(np.concatenate(tokens), log_depth, counts.argmax(1))


def probe(splits: dict[str, Patches], split: str) -> list[float]:
    """Returns AbsRel and delta1 of depth in metres, and accuracy and mean IoU of the classes."""
    train, tuned, held_out = splits[TRAIN], splits[HELD_OUT[0]], splits[split]
    mean, deviation = train.tokens.mean(0), train.tokens.std(0) + 1e-6

    def features(patches: Patches) -> NDArray[np.float64]:
        return np.hstack([(patches.tokens - mean) / deviation, np.ones((len(patches.tokens), 1))])

    count = max(patches.classes.max() for patches in splits.values()) + 1
    targets = np.hstack([train.log_depth[:, None], np.eye(count)[train.classes]])
    x = features(train)
    gram, moment = x.T @ x, x.T @ targets
    fits = [np.linalg.solve(gram + strength * np.eye(len(gram)), moment) for strength in STRENGTHS]
    depth_fit = min(fits, key=lambda fit: depth_scores(features(tuned) @ fit[:, 0], tuned)[0])
    class_fit = max(fits, key=lambda fit: class_scores(features(tuned) @ fit[:, 1:], tuned)[1])
    x = features(held_out)
    return [*depth_scores(x @ depth_fit[:, 0], held_out), *class_scores(x @ class_fit[:, 1:], held_out)]


def depth_scores(log_depth: NDArray[np.float64], truth: Patches) -> tuple[float, float]:
    """Returns AbsRel and delta1 of patches that are not sky."""
    seen = truth.log_depth < np.log(SKY_M) - 1e-6
    error = log_depth[seen] - truth.log_depth[seen]
    return float(np.abs(np.expm1(error)).mean()), float((np.abs(error) < np.log(1.25)).mean())


def class_scores(votes: NDArray[np.float64], truth: Patches) -> tuple[float, float]:
    """Returns the accuracy and the mean IoU over the classes that occur."""
    guess = votes.argmax(1)
    present = np.unique(truth.classes)
    both = [((guess == k) & (truth.classes == k)).sum() for k in present]
    either = [((guess == k) | (truth.classes == k)).sum() for k in present]
    return float((guess == truth.classes).mean()), float(np.mean(np.divide(both, either)))


def cosines(tokens: NDArray[np.float64], count: int = 2000) -> NDArray[np.float64]:
    """Returns the cosines of `count` random pairs of tokens [n c], or of as many as there are."""
    count = min(count, len(tokens) // 2)
    chosen = np.random.default_rng(0).choice(len(tokens), 2 * count, replace=False)
    unit = tokens[chosen] / np.linalg.norm(tokens[chosen], axis=1, keepdims=True)
    return np.asarray((unit[:count] * unit[count:]).sum(1))


if __name__ == "__main__":
    main()
