"""per_image.csv: the scores of every image, in full precision."""

import csv
from collections.abc import Sequence
from pathlib import Path

from depthany.evaluation.after_alignment import WORDS
from depthany.evaluation.results import ProtocolResult
from depthany.evaluation.score import Row
from depthany.system.files import write_atomically

PER_IMAGE_FILE = "per_image.csv"


def write_per_image(out: Path, results: Sequence[ProtocolResult]) -> None:
    """Writes per_image.csv: one line per protocol, checkpoint and image, in full precision."""
    rows = [
        (result.protocol.name, label, row)
        for result in results
        for label, scored in result.scored.items()
        for row in scored.rows
    ]
    names = list(dict.fromkeys(name for result in results for name in result.protocol.metrics))
    fixed = ["protocol", "checkpoint", "image", "scene", "pixels", "scale", "shift", "constant"]
    aligned = [f"{name}_after_{method}" for name in names for method in WORDS]
    has_aligned = any(row.aligned for _, _, row in rows)
    aligned = ["median_scale", *aligned] if has_aligned else []

    def fill(path: Path) -> None:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fixed + names + aligned, restval="")
            writer.writeheader()
            for protocol_name, label, row in rows:
                writer.writerow(
                    {"protocol": protocol_name, "checkpoint": label, "image": row.name, "scene": row.scene}
                    | ({} if row.scene else {"pixels": row.pixels, "constant": int(row.is_constant)})
                    | ({} if row.fitted is None else {"scale": row.fitted.scale, "shift": row.fitted.shift})
                    | row.scores
                    | _aligned_cells(row)
                )

    write_atomically(out / PER_IMAGE_FILE, fill)


def _aligned_cells(row: Row) -> dict[str, float]:
    cells = {f"{k}_after_{method}": v for method, each in row.aligned.items() for k, v in each.scores.items()}
    return cells | ({"median_scale": row.aligned["median"].fitted.scale} if "median" in row.aligned else {})
