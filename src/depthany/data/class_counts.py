"""How often classes occur in the masks of a set: the first look at data that is new."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depthany.data.plausible import FILES


def class_notes(sets: Mapping[str, Any], files: int = FILES) -> list[str]:
    """Returns a line for each set of masks; see `shares_of_classes`."""
    return [f"{name}: {line}" for name, line in shares_of_classes(sets, files)]


def shares_of_classes(sets: Mapping[str, Any], files: int = FILES) -> list[tuple[str, str]]:
    """Returns the name of each set of masks and a line with the share of its classes in some files.

    Args:
        sets: sets by name; those with other labels are left out.
    """
    found = list[tuple[str, str]]()
    for name, dataset in sets.items():
        if getattr(dataset, "unit", None) == "class":
            counts, pixels, read = count_classes(dataset, files)
            found.append((name, _line(dataset.classes.names, counts, pixels, read, len(dataset))))
    return found


def count_classes(dataset: Any, files: int = FILES) -> tuple[NDArray[np.int64], int, int]:
    """Returns the pixels of each class [k] in some evenly spaced masks, all their pixels, and how many masks
    were read. Skips a mask that cannot be read: whoever needs it reports it.
    """
    counts, pixels, read = np.zeros(len(dataset.classes.names), np.int64), 0, 0
    for k in range(min(files, len(dataset))):
        try:
            labels = dataset.labels(k * len(dataset) // min(files, len(dataset)))
        except ValueError:
            continue
        counts += np.bincount(labels.values[labels.valid].astype(np.int64), minlength=len(counts))
        pixels, read = pixels + labels.valid.size, read + 1
    return counts, pixels, read


def _line(names: tuple[str, ...], counts: NDArray[np.int64], pixels: int, read: int, of: int) -> str:
    order = np.argsort(-counts, kind="stable")
    shares = [f"{names[i]} {counts[i] / max(pixels, 1):.1%}" for i in order[:20] if counts[i]]
    absent = int((counts == 0).sum())
    ignored = 1 - counts.sum() / max(pixels, 1)
    rest = f", {absent} classes not seen" if absent else ""
    return f"pixels of {read} of {of} masks: {', '.join(shares)}; ignored {ignored:.1%}{rest}"
