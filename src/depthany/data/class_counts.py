"""How often classes occur in the masks of a set: the first look at data that is new."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depthany.data.class_list import IGNORED
from depthany.data.masks import read_mask
from depthany.data.plausible import FILES
from depthany.system.plurals import counted


def class_notes(sets: Mapping[str, Any], files: int = FILES) -> list[str]:
    """Returns a line for each set of masks; see `shares_of_classes`.

    Raises:
        ValueError: a set would teach one class only, see `binary_mistake`.
    """
    lines = [f"{name}: {line}" for name, line in shares_of_classes(sets, files)]
    for name, dataset in sets.items():
        if mistake := binary_mistake(dataset, files):
            raise ValueError(f"{name}: {mistake}")
    return lines


def binary_mistake(dataset: Any, files: int = FILES) -> str:
    """Returns what is wrong if masks of several classes seem to store their foreground as 255; else "".

    They do if all masks that are read hold one value besides 255, and 255 is ignored.
    """
    if getattr(dataset, "unit", None) != "class" or len(dataset.classes.names) < 2 or not len(dataset):
        return ""
    if dataset.classes.lookup()[IGNORED] != IGNORED:  # 255 is a class
        return ""
    stored, read = set[int](), 0
    for index in evenly_spaced(dataset, files):
        try:
            stored |= set(map(int, np.unique(read_mask(Path(dataset.files(index)[1])))))
        except ValueError:
            continue
        read += 1
    if len(stored) != 2 or IGNORED not in stored:
        return ""
    masks = f"all {read} masks that were read hold" if read > 1 else "the mask that was read holds"
    return (
        f"{masks} only {min(stored)} and {IGNORED}, but {IGNORED} is ignored, so that one of "
        f"{len(dataset.classes.names)} classes would be learned: if {IGNORED} is a class, say so in "
        f"classes.yaml, as in {{name: {dataset.classes.names[-1]}, ids: [{IGNORED}]}}; else list one class"
    )


def evenly_spaced(dataset: Any, files: int) -> list[int]:
    """Returns the indices of some evenly spaced images of a set."""
    wanted = min(files, len(dataset))
    return [k * len(dataset) // wanted for k in range(wanted)]


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
    for index in evenly_spaced(dataset, files):
        try:
            labels = dataset.labels(index)
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
    rest = f", {absent} class{'es' * (absent != 1)} not seen" if absent else ""
    return f"pixels of {read} of {counted(of, 'mask')}: {', '.join(shares)}; ignored {ignored:.1%}{rest}"
