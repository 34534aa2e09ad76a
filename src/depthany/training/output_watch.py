"""Watches a model's outputs during training, and how many images carry information: has training died?

A loss does not show it. The affine-invariant loss of a constant map is 1, that of outputs of 1e35 is 1 too
(their deviation is infinite), and that of labels without spread is 0.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depthany.system.distributed import ALONE, Processes
from depthany.training.stages.base import StageImages

FLAT = 1e-6  # largest spread of a constant map, as the loss sees it, absolute and relative to its values
MOST_CONSTANT = 0.5  # share of images; a healthy model has none, even on a blank wall
LARGEST = 1e6  # known models of relative depth stay below some 1e4, those of metres below 1e3
MOST_ZEROS = 0.9  # share of pixels
MOST_NEW = 100  # micro-batches whose figures wait to be summed up together
FEWEST_COUNTED = 0.5  # share of images; below it a batch is less than half as large as it seems
COUNTED = "output/counted_"  # of a kind of image, in the log
_CALMER = "lower optimizer.lr, raise schedule.warmup_steps, or set optimizer.clip_norm"


class OutputWatch:
    """Range and spread of the outputs since the last line of the log, and the images that count in the loss.

    Everything stays on its device until `read`.

    Args:
        processes: processes that share the batches; `read` is over all of them.
        is_relative: only the spread of a target means something, see `depthany.data.targets.Target`.
    """

    def __init__(self, processes: Processes = ALONE, is_relative: bool = True) -> None:
        self._processes, self._is_relative = processes, is_relative
        self.restart()

    def restart(self) -> None:
        """Begins a new interval."""
        self._range: Tensor | None = None  # [2]: -smallest, largest
        self._sums: dict[str, Tensor] = {}  # [3] each: of spread, constant, counted
        self._images: dict[str, int] = {}
        self._new: dict[str, list[tuple[Tensor, ...]]] = {}  # [b] each, see `_of_images`; not yet in the sums

    @torch.no_grad()
    def add(self, images: Mapping[str, StageImages]) -> None:
        """Adds what a stage saw and predicted in a micro-batch."""
        for kind, shown in images.items():
            if not len(shown.prediction):
                continue
            low, high = shown.prediction.float().flatten(1).aminmax(dim=1)  # [b]
            new = self._new.setdefault(kind, [])
            new.append((low, high, *extent(shown.target, shown.mask, self._is_relative)))
            self._images[kind] = self._images.get(kind, 0) + len(low)
            if len(new) == MOST_NEW:
                self._sum_up(kind)

    def _sum_up(self, kind: str) -> None:
        """Moves what is new of a kind into the sums: once for many steps, which saves a GPU many kernels."""
        low, high, first, last = (torch.cat(each) for each in zip(*self._new.pop(kind)))  # [images]
        spread = high - low
        is_constant = ~(spread > FLAT * torch.maximum(low.abs(), high.abs()).clamp(min=1))
        counted = last - first > (FLAT if self._is_relative else 0)
        reached = torch.stack([(-low).max(), high.max()])
        self._range = reached if self._range is None else torch.maximum(self._range, reached)
        sums = torch.stack([spread.sum(), is_constant.sum().float(), counted.sum().float()])
        self._sums[kind] = self._sums[kind] + sums if kind in self._sums else sums

    def read(self) -> dict[str, float]:
        """Returns the range, mean spread and share of constant outputs, and the share of images that count.

        The last is by kind. It waits for the device; all ranks call it together. {} if there was no image.
        """
        for kind in list(self._new):
            self._sum_up(kind)
        here = {kind: [*sums.tolist(), self._images[kind]] for kind, sums in self._sums.items()}
        reached = None if self._range is None else self._range.tolist()
        parts = self._processes.gather((reached, here))
        ranges = [each for each, _ in parts if each is not None]
        if not ranges:
            return {}
        totals: dict[str, NDArray[np.float64]] = {}  # [4] each: spread, constant, counted, images
        for _, part in parts:
            for kind, numbers in part.items():
                totals[kind] = totals.get(kind, np.zeros(4)) + numbers
        spread, constant, _, images = sum(totals.values(), np.zeros(4)).tolist()
        return {
            "output/min": -max(low for low, _ in ranges),
            "output/max": max(high for _, high in ranges),
            "output/spread": spread / images,
            "output/constant": constant / images,
            **{f"{COUNTED}{kind}": float(all_[2] / all_[3]) for kind, all_ in sorted(totals.items())},
        }


def says_something(target: Tensor, mask: Tensor, is_relative: bool) -> Tensor:
    """Returns [b] bool, True where an image counts in the loss.

    Args:
        target: [b h w]; a relative one is in 0..1. mask: [b h w] bool, True where it is known.
        is_relative: the known values must differ.
    """
    first, last = extent(target, mask, is_relative)
    return last - first > (FLAT if is_relative else 0)


def extent(target: Tensor, mask: Tensor, is_relative: bool) -> tuple[Tensor, Tensor]:
    """Returns the smallest and largest known value [b] of each image; inf and -inf if it has none.

    Where the target is not relative, 0 and whether it has any.

    Args:
        target, mask, is_relative: see `says_something`.
    """
    target, mask = target.flatten(1), mask.flatten(1)  # [b n]
    if not is_relative:
        any_known = mask.any(1).float()
        return torch.zeros_like(any_known), any_known
    low = torch.where(mask, target, torch.inf).amin(1)  # [b]
    return low, torch.where(mask, target, -torch.inf).amax(1)


def without_empty_losses(means: Mapping[str, float]) -> dict[str, float]:
    """Returns the scalars without losses in which no image counted: their 0 would look perfect."""
    counted = {name.removeprefix(COUNTED): share for name, share in means.items() if name.startswith(COUNTED)}
    empty = {f"loss/{kind}" for kind, share in counted.items() if share == 0}
    if counted and not any(counted.values()):
        empty.add("loss/total")
    return {
        name: value
        for name, value in means.items()
        if name not in empty and name.rpartition("/")[0] not in empty
    }


def faults_of(means: Mapping[str, float], is_relative: bool = True) -> dict[str, str]:
    """Returns what is wrong with the scalars of an interval: a line for each fault, by its name.

    Args:
        is_relative: see `OutputWatch`.
    """
    teaches = "a depth that varies" if is_relative else "known labels in range"
    faults = dict[str, str]()
    zeros, constant = means.get("output/zeros", 0.0), means.get("output/constant", 0.0)
    if zeros > MOST_ZEROS:
        faults["zeros"] = (
            f"dead output ReLU: {zeros:.0%} of the predicted pixels are exactly 0 and pass no gradient; "
            f"{_CALMER}"
        )
    elif constant > MOST_CONSTANT:
        faults["constant"] = (
            f"dead output: {constant:.0%} of the predicted maps are constant and teach nothing; {_CALMER}"
        )
    low, high = means.get("output/min", 0.0), means.get("output/max", 0.0)
    if not (abs(low) <= LARGEST and abs(high) <= LARGEST):  # so NaN is a fault too
        faults["exploded"] = (
            f"exploding output: the predicted values reach from {low:.3g} to {high:.3g}; {_CALMER}"
        )
    for name, share in means.items():
        kind = name.removeprefix(COUNTED)
        if kind != name and share < FEWEST_COUNTED:
            faults[name] = (
                f"{share:.0%} of the {kind} crops have {teaches}; the others do not count in the "
                "loss: look at the pictures in TensorBoard, and at python -m depthany.check_data"
            )
    return faults
