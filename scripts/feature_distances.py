r"""How far apart the tokens of an encoder are, and those of a trained student from it.

    python scripts/feature_distances.py                                 # the encoder and images of the sample
    python scripts/feature_distances.py --student outputs/student
    python scripts/feature_distances.py --encoder vits --weights dinov2_vits14_pretrain.pth --size 518 \
        --images PHOTOS

Feature alignment leaves out a student's tokens with 1 - cos < alpha to the frozen encoder's
(stage.feature_alignment). Whether any token can be farther depends on the encoder: if all of its tokens
point nearly the same way, none is far from any other. The script prints quantiles of

- cos between tokens of different places of different images,
- with --student, 1 - cos between student and frozen encoder at the same place, and the share kept,

as they are and without the mean of the frozen encoder's tokens (stage.feature_alignment.center=mean; here the
mean is over all images, in training over a micro-batch), and draws their histograms. Images are whole and
clean, cut to a square around their centre.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from matplotlib import pyplot
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from depthany import load_model
from depthany.data.images import read_image
from depthany.data.unlabeled import FolderImages
from depthany.losses.features import CENTERS, feature_alignment_loss, mean_token
from depthany.models.encoder import Encoder, patch_tokens
from depthany.models.files.weights import load_encoder_weights
from depthany.models.model import build_encoder

SAMPLE = Path("data/sample")
IMAGES = (SAMPLE / "labeled/train/images", SAMPLE / "unlabeled/train/images")
QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
BATCH = 8
BETWEEN, TO_STUDENT = "cos, different places and images", "1 - cos, student and frozen, same place"


def main() -> None:
    """Parses the command line, measures, prints the table and writes the picture."""
    args = parse_arguments()
    try:
        rows = measure(args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(markdown(rows, args.alpha))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    plot(rows, args.alpha, args.out)
    print(f"\nhistograms: {args.out}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="vitt", help="size of the frozen encoder (default vitt)")
    parser.add_argument(
        "--weights",
        type=Path,
        default=SAMPLE / "encoder_vitt.safetensors",
        help="weights of the frozen encoder (default: the sample's)",
    )
    parser.add_argument("--student", help="run directory or model file of a student of that encoder")
    parser.add_argument(
        "--images", type=Path, nargs="+", default=IMAGES, help="folders (default: training images of sample)"
    )
    parser.add_argument("--count", type=int, default=128, help="images drawn from all folders (default 128)")
    parser.add_argument("--pairs", type=int, default=200_000, help="pairs of tokens (default 200000)")
    parser.add_argument("--size", type=int, default=126, help="pixels per side of the input (default 126)")
    parser.add_argument("--alpha", type=float, default=0.15, help="margin (default 0.15, the paper's)")
    parser.add_argument("--seed", type=int, default=0, help="seed of images and pairs (default 0)")
    parser.add_argument("--out", type=Path, default=Path("outputs/feature_distances.png"), help="picture")
    return parser.parse_args()


def measure(args: argparse.Namespace) -> dict[tuple[str, str], NDArray[np.float32]]:
    """Returns the values of each row by what is compared and the centering."""
    draw = np.random.default_rng(args.seed)
    paths = draw_images(args.images, args.count, draw)
    frozen_encoder = build_encoder({"name": "dinov2", "size": args.encoder})
    load_encoder_weights(frozen_encoder, args.weights)
    frozen = tokens_of(frozen_encoder, paths, args.size)
    first, second = draw_pairs(*frozen.shape[:2], args.pairs, draw)
    rows = {}
    for center in CENTERS:
        common = mean_token(frozen) if center == "mean" else torch.zeros(frozen.shape[2])
        flat = (frozen - common).flatten(0, 1)
        rows[BETWEEN, center] = F.cosine_similarity(flat[first], flat[second], dim=1).numpy()
    if args.student:
        student = tokens_of(load_model(args.student).encoder, paths, args.size)
        for center in CENTERS:
            aligned = feature_alignment_loss(student, frozen, alpha=args.alpha, center=center)
            rows[TO_STUDENT, center] = aligned.distance.flatten().numpy()
    return rows


def draw_images(folders: Sequence[Path], count: int, draw: np.random.Generator) -> list[Path]:
    """Returns `count` different images of all folders together, or all if there are fewer."""
    paths = [path for folder in folders for path in FolderImages(str(folder)).paths]
    if min(count, len(paths)) < 2:
        raise ValueError(f"{min(count, len(paths))} images: expected two or more, by --count and --images")
    return [paths[i] for i in sorted(draw.permutation(len(paths))[:count])]


@torch.inference_mode()
def tokens_of(encoder: Encoder, paths: Sequence[Path], size: int) -> Tensor:
    """Returns the final patch tokens [b n c] of square images, in float32."""
    encoder.eval()
    side = encoder.preprocessing.shorter_side(size)
    tokens = []
    for start in range(0, len(paths), BATCH):
        images = []
        for path in paths[start : start + BATCH]:
            image = encoder.preprocessing.prepare(read_image(path, convert=True), size)  # [3 h w]
            top, left = ((length - side) // 2 for length in image.shape[1:])
            images.append(image[:, top : top + side, left : left + side])
        tokens.append(patch_tokens(encoder(torch.stack(images))[-1]))
    return torch.cat(tokens)


def draw_pairs(
    images: int, places: int, count: int, draw: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the numbers [count] of two tokens each, which differ in image and in place."""
    if places < 2:
        raise ValueError("an image has one token: pass a larger --size")
    image, place = draw.integers(images, size=count), draw.integers(places, size=count)
    other_image = (image + draw.integers(1, images, size=count)) % images
    other_place = (place + draw.integers(1, places, size=count)) % places
    return image * places + place, other_image * places + other_place


def markdown(rows: dict[tuple[str, str], NDArray[np.float32]], alpha: float) -> str:
    """Returns the quantiles of each row, and the share of values that alpha would leave out."""
    names = ["max" if quantile == 1 else f"{quantile:.0%}".replace("%", " %") for quantile in QUANTILES]
    header = ["", "center", *names, f"1 - cos < {alpha:g}"]
    lines = [" | ".join(header), "|".join(["---"] * len(header))]
    for (what, center), values in rows.items():
        quantiles = np.quantile(values, QUANTILES)
        distance = 1 - values if what == BETWEEN else values
        near = (distance < alpha).mean()
        lines.append(" | ".join([what, center, *(f"{value:.3f}" for value in quantiles), f"{near:.1%}"]))
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)


def plot(rows: dict[tuple[str, str], NDArray[np.float32]], alpha: float, out: Path) -> None:
    """Draws a panel for each quantity, with a histogram for each centering and a line at alpha."""
    shown = list(dict.fromkeys(what for what, _ in rows))
    figure, panels = pyplot.subplots(1, len(shown), figsize=(5 * len(shown), 3.2), squeeze=False)
    for what, panel in zip(shown, panels[0]):
        for center in CENTERS:
            panel.hist(rows[what, center], bins=100, histtype="step", density=True, label=f"center: {center}")
        panel.axvline(1 - alpha if what == BETWEEN else alpha, color="black", linewidth=0.8, linestyle="--")
        panel.set_xlabel(what)
        panel.set_ylabel("density")
        panel.legend()
    figure.tight_layout()
    figure.savefig(out, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
