"""Draws pairs of points, one of which is nearer, from the depth of the bundled sample: an offline DA-2K.

    python scripts/sample_pairs.py --data data/sample

Writes annotations.json, in the format of DA-2K, beside the images of each split with depth; the protocols
ordinal_sample_* score it. The type of scene is the folder of the image, rooms or streets. Half of the pairs
of an image are close (the farther point 1.1 to 1.3 times as far), half are clear (1.3 times and more; sky is
farther than all). No point lies at an edge, where a pixel more or less would decide. The pairs of an image
depend on --seed and its name alone.
"""

import argparse
import json
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depthany.data.folder_depth import FolderDepth
from depthany.system.files import write_atomically

SPLITS = ("labeled/val", "unlabeled/val", "unlabeled/test")
SCENES: dict[str, dict[str, Any]] = {  # as in configs/data/sample.yaml
    "rooms": {"max_depth": 10},
    "streets": {"max_depth": 65, "sky_value": 65535},
}
MARGINS = ((1.1, 1.3), (1.3, np.inf))  # farther over nearer depth: from, to
PER_MARGIN = 3
AROUND = 5  # pixels: depth varies by less than FLAT within such a square around a point
FLAT = 1.05
APART = 0.1  # least distance of two points, as share of the width
TRIES = 4000
SKY_M = 1e4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data/sample"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for split in SPLITS:
        annotations = annotate(args.data / split, args.seed)
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(pairs)}" for name, pairs in annotations.items())
        path = args.data / split / "annotations.json"
        write_atomically(path, lambda part, text=f"{{\n{lines}\n}}\n": part.write_text(text))
        print(f"{path}: {sum(map(len, annotations.values()))} pairs in {len(annotations)} images")


def annotate(folder: Path, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Returns the pairs of each image of a split by its path, in the form of DA-2K's annotations."""
    annotations = dict[str, list[dict[str, Any]]]()
    for scene, options in SCENES.items():
        dataset = FolderDepth(str(folder), f"images/{scene}", f"depth/{scene}", 1000, **options)
        for index in range(len(dataset)):
            labels = dataset.labels(index)
            depth_m = np.where(labels.valid, labels.values, np.nan)
            if labels.sky is not None:
                depth_m[labels.sky] = SKY_M
            name = Path(dataset.files(index)[0]).relative_to(folder).as_posix()
            rng = np.random.default_rng([seed, zlib.crc32(f"{folder.parent.name}/{name}".encode())])
            if pairs := draw_pairs(depth_m, rng):
                annotations[name] = pairs
    return annotations


def draw_pairs(depth_m: NDArray, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Returns pairs of points of an image, as many of each margin as it has, up to PER_MARGIN.

    Args:
        depth_m: [h w] true depth, NaN where unknown, SKY_M in the sky.
    """
    points = np.argwhere(is_flat(depth_m))  # [n 2] row, column
    pairs = list[dict[str, Any]]()
    if len(points) < 2:
        return pairs
    for low, high in MARGINS:
        found = 0
        for one, other in points[rng.integers(len(points), size=(TRIES, 2))]:
            depths_m = depth_m[tuple(one)], depth_m[tuple(other)]
            ratio, apart = max(depths_m) / min(depths_m), np.hypot(*(one - other))
            if not low <= ratio < high or apart < APART * depth_m.shape[1]:
                continue
            points_of_pair = {"point1": one.tolist(), "point2": other.tolist()}
            closer = "point1" if depths_m[0] < depths_m[1] else "point2"
            pairs.append({**points_of_pair, "closer_point": closer})
            found += 1
            if found == PER_MARGIN:
                break
    return pairs


def is_flat(depth_m: NDArray) -> NDArray[np.bool_]:
    """Returns [h w] True where depth is known and nearly the same all around."""
    square = np.ones((AROUND, AROUND), np.uint8)
    known = np.isfinite(depth_m)
    values = np.where(known, depth_m, 1).astype(np.float32)
    flat = cv2.dilate(values, square) < FLAT * cv2.erode(values, square)
    whole = cv2.erode(known.astype(np.uint8), square, borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
    found: NDArray[np.bool_] = flat & whole
    return found


if __name__ == "__main__":
    main()
