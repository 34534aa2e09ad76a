"""Reads the validation sets before the first step, so that no run ends at its first validation."""

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from depthany.data.left_out import require_few
from depthany.data.samples import LabeledSet
from depthany.evaluation.protocol import Protocol
from depthany.evaluation.score import counted_pixels
from depthany.metrics.align import is_degenerate
from depthany.system.distributed import ALONE, Processes
from depthany.system.packages import MissingPackage
from depthany.training.validation import SKIP_HINT, first_lines, nothing_to_evaluate, protocol_of

LONGEST_S = 10.0  # for all sets together; what is not read by then is left to the first validation
_THREADS, _AT_ONCE = 4, 16  # images between looks at the clock


@dataclass
class _Found:
    """What was found in a set: images that were read, those of use, and a line per unreadable one."""

    read: int = 0
    useful: int = 0
    unreadable: list[str] = field(default_factory=list)


def check_sets(
    sets: Mapping[str, LabeledSet],
    align: str,
    convert_images: bool = False,
    max_unreadable_share: float | None = None,
    processes: Processes = ALONE,
    longest_s: float = LONGEST_S,
) -> list[str]:
    """Reads the images and labels of every set, or a random part if they take too long; rank 0 reads.

    Args:
        sets: sets by name. align: name of the alignment that scores them, see `alignment_of`.
        convert_images, max_unreadable_share: see `training.validation.evaluate`.
        processes: all call this, and all raise or return the same.
        longest_s: seconds after which no further image is read; each set gets a share.

    Returns:
        Lines for the user: what will be left out, and how much was read if not all.

    Raises:
        ValueError: an image cannot be read and must not be left out, or no image can be scored.
    """
    lines, fault = list[str](), ""
    if processes.is_main:
        for number, (name, dataset) in enumerate(sets.items()):
            share_s = longest_s / (len(sets) - number)
            began = time.monotonic()
            try:
                lines += _check(name, dataset, align, convert_images, max_unreadable_share, share_s)
            except ValueError as error:
                fault = str(error)
                break
            longest_s -= time.monotonic() - began
    lines, fault = processes.from_main((lines, fault))
    if fault:
        raise ValueError(fault)
    return lines


def _check(
    name: str,
    dataset: LabeledSet,
    align: str,
    convert_images: bool,
    max_unreadable_share: float | None,
    longest_s: float,
) -> list[str]:
    metrics = ("miou",) if getattr(dataset, "unit", "m") == "class" else ("abs_rel",)
    protocol, images = protocol_of(name, dataset, align, metrics), len(dataset)
    found, lines, key = _read(dataset, protocol, convert_images, longest_s), list[str](), f"data.val.{name}"
    if bad := found.unreadable:
        of_read = f"{len(bad)} of {found.read} images that were read"
        if max_unreadable_share is None:
            raise ValueError(f"{key}: {of_read} cannot be used: {first_lines(bad)} {SKIP_HINT}")
        require_few(len(bad), found.read, max_unreadable_share, key, first_lines(bad))
        lines.append(f"warning: {key}: {of_read} cannot be used and will be left out: {first_lines(bad)}")
    if found.read == images and not found.useful:
        raise ValueError(nothing_to_evaluate(key, images))
    if found.read < images:
        lines.append(
            f"{key}: {found.read} of {images} images were read before training, as many as {longest_s:.0f} s "
            "allow; the first validation reads the others"
        )
    return lines


def _read(dataset: LabeledSet, protocol: Protocol, convert_images: bool, longest_s: float) -> _Found:
    found, until = _Found(), time.monotonic() + longest_s

    def read(index: int) -> str | bool:
        """Returns why an image cannot be used, or else whether its ground truth says something."""
        try:
            labels = dataset.read(index, convert_images).labels
        except MissingPackage:
            raise
        except ValueError as error:
            return str(error)
        if protocol.task == "classes":
            return bool(labels.valid.any())
        counted = counted_pixels(labels.disparity, labels.mask, protocol)
        return bool(counted.any()) and not is_degenerate(protocol.align, labels.disparity[counted])

    with ThreadPoolExecutor(_THREADS) as pool:
        for indices in _batches(len(dataset)):
            for result in pool.map(read, indices):
                found.read += 1
                if isinstance(result, str):
                    found.unreadable.append(result)
                found.useful += result is True
            if time.monotonic() > until:
                break
    return found


def _batches(images: int) -> Iterator[list[int]]:
    """Yields all indices in random order, so that the first ones are spread over the set."""
    order = np.random.default_rng(0).permutation(images)
    for start in range(0, images, _AT_ONCE):
        yield order[start : start + _AT_ONCE].tolist()
