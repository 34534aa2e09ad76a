"""Means of what the stage reports between two lines of the log, and the line itself."""

import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from depthany.data.batch import Batch
from depthany.system.cpu_wait import CpuWait
from depthany.system.distributed import ALONE, Processes
from depthany.training.alignment_watch import EVERYWHERE, IDLE, KEPT, AlignmentWatch
from depthany.training.output_watch import OutputWatch, faults_of, without_empty_losses
from depthany.training.quantiles import quantiles
from depthany.training.stages.base import StageOutput
from depthany.training.tracking import NullTracker, Tracker

WAITING_FOR_CPU = "speed/share_waiting_for_cpu"
BUSY_FROM = 0.25  # share of waiting that is worth a line


class Meter:
    """Means of scalars since the last line in the log, and the speed; not saved, so it restarts on resume.

    A mean is over the micro-batches that have the scalar: one without labeled images has no loss/labeled. It
    is the same on all ranks, and images are counted over all of them; the time is that of this rank.

    Args:
        processes: processes that share the batches. is_relative: see `OutputWatch`.
        alignment: counts the steps of a feature alignment that leaves out all tokens, or none.

    Attributes:
        faults: what was wrong at the last line in the log, by name; see `output_watch.faults_of`.
    """

    def __init__(
        self,
        processes: Processes = ALONE,
        is_relative: bool = True,
        alignment: AlignmentWatch | None = None,
    ) -> None:
        self._processes, self._outputs = processes, OutputWatch(processes, is_relative)
        self.is_relative = is_relative
        self._alignment = alignment if alignment is not None else AlignmentWatch()
        self._warned_once = set[str]()
        self._cpu, self._is_told_of_busy = CpuWait(), False
        self.faults: dict[str, str] = {}
        self.restart()

    def restart(self) -> None:
        """Begins a new interval."""
        self._outputs.restart()
        self.images, self.waited, self.started = 0, 0.0, time.perf_counter()
        self.sums: dict[tuple[str, ...], Tensor] = {}  # of the scalars of these names
        self.weights: dict[str, float] = {}  # steps with the scalar
        self._newest: dict[str, Tensor] = {}  # distributions
        self.steps = 0
        self.clipped: Tensor | None = None  # [] steps

    def wait_for(self, batches: Iterator[Batch]) -> Batch:
        """Returns the next batch; the time that it took counts as waiting for data."""
        asked = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - asked
        return batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count the time inside as training."""
        began = time.perf_counter()
        yield
        self.started += time.perf_counter() - began

    def add(self, output: StageOutput, images: int, micro_batches: int) -> None:
        """Adds the scalars of a micro-batch; they stay on their device."""
        self.images += images
        self._outputs.add(output.images)
        self._newest.update(output.distributions)
        total = {"loss/total": output.loss} if images else {}
        scalars = {**total, **output.scalars}
        if not scalars:
            return
        for name in scalars:
            self.weights[name] = self.weights.get(name, 0.0) + 1 / micro_batches
        values = torch.stack([value.detach().float() for value in scalars.values()])  # all in one sum
        values, names = values / micro_batches if micro_batches > 1 else values, tuple(scalars)
        self.sums[names] = self.sums[names] + values if names in self.sums else values

    def add_step(self, gradient_norm: Tensor, clip_norm: float | None) -> None:
        """Counts a step, and whether its gradient was clipped; gradient_norm [] stays on its device."""
        if clip_norm is not None:
            self.steps += 1
            is_clipped = (gradient_norm > clip_norm).float()
            self.clipped = is_clipped if self.clipped is None else self.clipped + is_clipped

    def means(self) -> dict[str, float]:
        """Returns the mean of each scalar, the speed, and what the model put out since the last restart.

        Quantiles are those of the newest micro-batch.
        """
        seconds = time.perf_counter() - self.started
        speed = {
            "speed/images_per_second": self.images / seconds,
            "speed/share_waiting_for_data": self.waited / seconds,
        }
        if (waits := self._cpu.share()) is not None:
            speed[WAITING_FOR_CPU] = waits
        if self.clipped is not None:
            speed["optimizer/clipped_steps"] = float(self.clipped) / self.steps
        outputs = self._outputs.read() | quantiles(self._newest, self._processes)
        if not self.sums:
            return outputs | speed
        sums: dict[str, Tensor] = {}  # [] each
        for names, values in self.sums.items():
            for name, value in zip(names, values):
                sums[name] = sums[name] + value if name in sums else value
        of_all = self._processes.mean(torch.stack(list(sums.values()))).tolist()
        means = {name: value / self.weights[name] for name, value in zip(sums, of_all)}
        return without_empty_losses(means | outputs) | speed

    def busy_line(self, means: Mapping[str, float]) -> str | None:
        """Returns a line, once, if other programs have much of the CPU that this process could use."""
        waits = means.get(WAITING_FOR_CPU, 0.0)
        if self._is_told_of_busy or waits < BUSY_FROM:
            return None
        self._is_told_of_busy = True
        return (
            f"the machine is busy: this process waits for a CPU {waits:.0%} of the time. If steps are "
            "slow, stop it and continue with one thread per free core, such as threads=1"
        )

    def new_faults(self, means: Mapping[str, float]) -> list[str]:
        """Returns a line for each fault that begins with this interval, and sets `faults`.

        A state that takes hundreds of steps to be a fault is named once, however often it begins.
        """
        of_alignment = self._alignment.faults(means, self.weights.get(KEPT, 0.0))
        faults = faults_of(means, self.is_relative) | of_alignment
        known = self.faults.keys() | self._warned_once
        self.faults, self._warned_once = faults, self._warned_once | (faults.keys() & {IDLE, EVERYWHERE})
        return [line for name, line in faults.items() if name not in known]


def log_scalars(
    tracker: Tracker | NullTracker,
    step: int,
    meter: Meter,
    optimizer: torch.optim.Optimizer,
    gradient_norm: Tensor,
    device: torch.device,
) -> None:
    """Writes the scalars since the last line and gradient_norm [], shows progress, warns of new faults."""
    means = meter.means()
    rates = {f"learning_rate/{group['name']}": group["lr"] for group in optimizer.param_groups}
    memory = {
        "optimizer/gradient_norm": float(gradient_norm),
        "speed/memory_gb": peak_memory_gb(device),
    }
    tracker.scalars(step, {**means, **rates, **memory})
    tracker.progress(step, means.get("loss/total", math.nan), means["speed/images_per_second"])
    if busy := meter.busy_line(means):
        tracker.say(f"at step {step}: {busy}")
    for line in meter.new_faults(means):
        tracker.say(f"warning: at step {step}: {line}")
    meter.restart()


def peak_memory_gb(device: torch.device) -> float:
    """Returns the peak memory in GB: of the GPU where there is one, else resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
