"""What is printed while pseudo-labels are made, and at the end."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from depthany.data.pseudo_labels.store import UNREADABLE
from depthany.inference.constant_maps import WHY
from depthany.inference.labeling_counts import LabelingCounts
from depthany.system.plurals import counted

_PROJECT_AFTER_S = 20.0  # before the first projection; the time doubles before each further one


class LabelingProgress:
    """Advances the progress bar, and now and then prints the space and time that its images take.

    Args:
        advance: advances the bar by a number of images.
        wanted: images of this process.
        projects: whether this process prints the projection, which is made from its own rate.
    """

    def __init__(self, advance: Callable[[int], object], wanted: int, projects: bool) -> None:
        self.advance, self._wanted = advance, wanted
        self.next_s = _PROJECT_AFTER_S if projects else math.inf

    def __call__(self, images: int, counts: LabelingCounts) -> None:
        """Reports that `images` more images are done."""
        self.advance(images)
        if time.monotonic() - counts.began > self.next_s:
            self.next_s *= 2
            print(counts.projection(self._wanted), flush=True)


def print_labels(store: Path, counts: LabelingCounts, manifest: Mapping[str, Any] | None) -> None:
    """Prints what was done.

    Args:
        counts: counts of all processes.
        manifest: manifest of the complete store; None if other workers are still labeling.
    """
    if counts.labels:
        seconds = time.monotonic() - counts.began
        print(
            f"{counted(counts.labels, 'label')} in {seconds:.1f} s, {counts.rate():.1f}/s, "
            f"{counts.bytes_per_label() / 1e3:.0f} kB each; "
            f"the teacher was at work {counts.teacher_s / seconds / counts.workers:.0%} of the time"
        )
    if counts.constant:
        print(f"warning: {counts.constant} of {counts.labels} labels are constant: {WHY}")
    if manifest is None:
        print(f"{store}: other workers are still labeling shards; the last of them completes the store")
        return
    print(
        f"{store} is complete: {counted(manifest['labels'], 'label')} in "
        f"{counted(len(manifest['shards']), 'shard')}, "
        f"{manifest['bytes'] / 1e9:.3f} GB"
    )
    if manifest["unreadable"]:
        images = counted(manifest["unreadable"], "image")
        print(f"{images} could not be read, and no label was made: {store / UNREADABLE}")


def summary_of_labels(store: Path, counts: LabelingCounts, manifest: Mapping[str, Any] | None) -> str:
    """Returns a line on what was done; the arguments are those of `print_labels`.

    Raises:
        ValueError: other workers are still labeling.
    """
    if manifest is None:
        raise ValueError(f"{store}: another process is still labeling shards: start again when it is done")
    seconds = time.monotonic() - counts.began
    made = f"{counts.labels} of them made now in {seconds:.1f} s, {counts.rate():.1f}/s"
    line = f"{store}: {counted(manifest['labels'], 'label')}, {size_of(manifest['bytes'])}, {made}"
    if manifest["unreadable"]:
        line += f"; {counted(manifest['unreadable'], 'image')} without a label: {store / UNREADABLE}"
    return f"{line}; warning: {counts.constant} labels are constant: {WHY}" if counts.constant else line


def size_of(count: float) -> str:
    """Returns a number of bytes in words, such as "22 kB"."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"
