"""From files to the normalised crops that the model sees: `python scripts/benchmark.py data`.

Contestants: the steps of the released Depth Anything code (dataset/hypersim.py and util/transform.py of
DepthAnything/Depth-Anything-V2, metric_depth), torchvision.transforms.v2, and ours. All return
float32 [b 3 s s] and, with depth, [b s s] and its mask. They alternate in one process on one thread, in an
order that rotates; the result is the ratio of times within a round. Times are CPU times, which a busy machine
distorts less. Pictures are images of the bundled sample side by side, at their own resolution.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image, read_file
from torchvision.transforms import v2

from depthany.data.dataset import TrainingSet
from depthany.data.folder_depth import FolderDepth
from depthany.data.sampler import Draw
from depthany.data.transforms import covering_size
from depthany.data.unlabeled import FolderImages
from depthany.models.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

SAMPLE = Path(__file__).resolve().parents[1] / "data/sample/labeled/train"
Contestants = dict[str, Callable[[int], tuple[Tensor, ...]]]  # seed to image and perhaps depth and mask


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `benchmark.py data`."""
    parser.add_argument("--size", type=int, default=518, help="pixels per side of a crop (default 518)")
    parser.add_argument(
        "--pictures", nargs="+", default=["1500x1000", "2250x1500"], help="width x height (default both)"
    )
    parser.add_argument("--quality", type=int, default=90, help="JPEG quality, 4:2:0 (default 90)")
    parser.add_argument("--png", choices=("opencv", "pillow"), default="opencv", help="writer of the depth")
    parser.add_argument("--batch", type=int, default=8, help="pictures per round (default 8)")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (default 9)")


def run(arguments: argparse.Namespace) -> None:
    """Prints images per second and core, and ratios, with and without depth, for each size of picture."""
    cv2.setNumThreads(0)
    for picture in arguments.pictures:
        width, height = map(int, picture.split("x"))
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            for i in range(arguments.batch):
                write_pair(root, i, width, height, arguments.quality, arguments.png)
            sizes = [sum(f.stat().st_size for f in (root / n).iterdir()) for n in ("images", "depth")]
            image_kb, depth_kb = (size / arguments.batch / 1000 for size in sizes)
            print(
                f"\n{picture}, JPEG {image_kb:.0f} kB, PNG {depth_kb:.0f} kB on average, "
                f"crops of {arguments.size}"
            )
            for depth in (False, True):
                report(
                    "image and depth" if depth else "image only",
                    interleave(build(root, arguments.size, depth), arguments.rounds),
                    arguments.batch,
                )


def report(title: str, times: dict[str, list[float]], batch: int) -> None:
    """Prints images per second, and ratios of the others to ours."""
    print(f"  {title}: images per second and core, median (smallest to largest)")
    for name, seconds in times.items():
        print(f"    {name:16s} {spread([batch / each for each in seconds], 1)}")
    for ours in (name for name in times if name.startswith("ours")):
        for other in ("official", "torchvision v2"):
            ratios = [a / b for a, b in zip(times[other], times[ours], strict=True)]
            print(f"    {ours} : {other} = {spread(ratios, 2)} times as many")


def interleave(contestants: Contestants, rounds: int) -> dict[str, list[float]]:
    """Returns the CPU seconds of each contestant by round; another one begins each round."""
    names = list(contestants)
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(-1, rounds):  # the first is not timed
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.process_time()
            contestants[name](i + 1)
            if i >= 0:
                times[name].append(time.process_time() - start)
    return times


def build(root: Path, size: int, depth: bool) -> Contestants:
    """Returns functions that make one batch of all pictures below root."""
    pairs = list(zip(sorted((root / "images").iterdir()), sorted((root / "depth").iterdir()), strict=True))
    contestants: Contestants = {
        "official": partial(stack, official, pairs, size, depth),
        "torchvision v2": partial(stack, torchvision_v2, pairs, size, depth),
    }
    for decode in ("exact", "reduced"):
        labeled = [FolderDepth(str(root), depth_scale=1000)] if depth else []
        dataset = TrainingSet(labeled, [FolderImages(str(root / "images"))], size, decode=decode)
        contestants[f"ours {decode}"] = partial(ours, dataset, len(pairs), depth)
    return contestants


def ours(dataset: TrainingSet, count: int, depth: bool, seed: int) -> tuple[Tensor, ...]:
    """Returns a micro-batch as the loader makes it, normalised as the stage does it."""
    batch = dataset[[Draw(depth, i, seed * count + i, i, count) for i in range(count)]]
    if depth:
        return Preprocessing().normalise(batch.labeled_image), batch.target, batch.mask
    return (Preprocessing().normalise(batch.unlabeled_image),)


def stack(
    one: Callable, pairs: list[tuple[Path, Path]], size: int, depth: bool, seed: int
) -> tuple[Tensor, ...]:
    """Returns what `one` makes of every pair, as a batch."""
    draw = np.random.default_rng(seed)
    views = [one(image, depth_path if depth else None, size, draw) for image, depth_path in pairs]
    return tuple(torch.stack(each) for each in zip(*views, strict=True))


def official(image: Path, depth: Path | None, size: int, draw: np.random.Generator) -> tuple[Tensor, ...]:
    """Reads, converts to float64, resizes by cubic interpolation, normalises, transposes, and then crops."""
    rgb = cv2.cvtColor(cv2.imread(str(image)), cv2.COLOR_BGR2RGB) / 255.0
    height, width = (round(side / 14) * 14 for side in covering_size(*rgb.shape[:2], (size, size)))
    rgb = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_CUBIC)
    rgb = (rgb - IMAGENET_MEAN) / IMAGENET_STD
    rgb = np.ascontiguousarray(np.transpose(rgb, (2, 0, 1))).astype(np.float32)
    top, left = draw.integers(height - size + 1), draw.integers(width - size + 1)
    views = [rgb[:, top : top + size, left : left + size]]
    if depth is not None:
        depth_m = cv2.imread(str(depth), cv2.IMREAD_UNCHANGED) / 1000.0
        depth_m = cv2.resize(depth_m, (width, height), interpolation=cv2.INTER_NEAREST)
        depth_m = np.ascontiguousarray(depth_m.astype(np.float32))[top : top + size, left : left + size]
        views += [depth_m, depth_m > 0]
    return tuple(torch.from_numpy(view) for view in views)


def torchvision_v2(
    image: Path, depth: Path | None, size: int, draw: np.random.Generator
) -> tuple[Tensor, ...]:
    """Resizes with anti-aliasing and crops in uint8, then converts to float and normalises."""
    rgb = decode_image(read_file(str(image)), ImageReadMode.RGB)
    height, width = covering_size(*rgb.shape[1:], (size, size))
    rgb = v2.functional.resize(rgb, [height, width], v2.InterpolationMode.BICUBIC, antialias=True)
    top, left = int(draw.integers(height - size + 1)), int(draw.integers(width - size + 1))
    rgb = v2.functional.to_dtype(v2.functional.crop(rgb, top, left, size, size), torch.float32, scale=True)
    views = [v2.functional.normalize(rgb, list(IMAGENET_MEAN), list(IMAGENET_STD))]
    if depth is not None:
        depth_m = decode_image(read_file(str(depth)), ImageReadMode.UNCHANGED).float() / 1000.0
        depth_m = v2.functional.resize(depth_m, [height, width], v2.InterpolationMode.NEAREST_EXACT)
        depth_m = v2.functional.crop(depth_m, top, left, size, size)[0]
        views += [depth_m, depth_m > 0]
    return tuple(views)


def write_pair(root: Path, number: int, width: int, height: int, quality: int, png: str) -> None:
    """Writes a JPEG and its 16-bit depth, from images of the sample side by side."""
    tiles = sorted((SAMPLE / "images").rglob("*.jpg"))
    tiles = tiles[number * 7 % len(tiles) :] + tiles[: number * 7 % len(tiles)]
    image, depth_mm = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint16)
    paths, top = cycle(tiles), 0
    while top < height:
        left = 0
        while left < width:
            path = next(paths)
            tile = np.asarray(Image.open(path))
            paste(image, tile, top, left)
            paste(
                depth_mm,
                np.asarray(
                    Image.open(SAMPLE / "depth" / path.relative_to(SAMPLE / "images").with_suffix(".png"))
                ),
                top,
                left,
            )
            left += tile.shape[1]
        top += tile.shape[0]
    for name in ("images", "depth"):
        (root / name).mkdir(exist_ok=True)
    Image.fromarray(image).save(root / f"images/{number:03d}.jpg", quality=quality, subsampling="4:2:0")
    target = str(root / f"depth/{number:03d}.png")
    if png == "opencv":
        cv2.imwrite(target, depth_mm)
    else:
        Image.fromarray(depth_mm).save(target)


def paste(target: NDArray, tile: NDArray, top: int, left: int) -> None:
    """Copies `tile` to a place of the target, cut at its border."""
    room = target[top : top + tile.shape[0], left : left + tile.shape[1]]
    room[:] = tile[: room.shape[0], : room.shape[1]]


def spread(values: list[float], digits: int) -> str:
    """Returns the text "median (smallest to largest)"."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
