"""How many cores other programs leave free: a model's threads wait for each other, so each needs a core."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from depthany.system.processes import cores

STATISTICS = Path("/proc/stat")  # Linux: time of each core since the machine started, in ticks
SHORTEST_S, LONGEST_S = 0.2, 10.0  # of an observation; a tick is 10 ms
IDLE_COLUMNS = (3, 4)  # idle, and waiting for a disk


@dataclass(frozen=True)
class Threads:
    """Threads of a model, and why there are so few of them.

    Attributes:
        count: number of threads.
        reason: a line for the user; None if every core has its thread or the user has chosen.
    """

    count: int
    reason: str | None = None


class Observation:
    """What the cores of this process do from now on; begun when this module is imported, see `OBSERVED`."""

    def __init__(self) -> None:
        self._most: int | None = None
        self._begin()

    def _begin(self) -> None:
        self._idle_s, self._at, self._own_s = idle_seconds(), time.monotonic(), own_seconds()

    def most_threads(self) -> int:
        """Returns torch's number of threads before one was set here, as for each job of a sweep."""
        if self._most is None:
            self._most = torch.get_num_threads()
        return self._most

    def used_by_others(self) -> float | None:
        """Returns the mean number of cores that other programs used since; None where the system is silent.

        Waits until a fifth of a second is observed. What was seen longer ago than `LONGEST_S` does not count:
        then it observes again.
        """
        if time.monotonic() - self._at > LONGEST_S:
            self._begin()
        time.sleep(max(0.0, self._at + SHORTEST_S - time.monotonic()))
        idle_s, before_s = idle_seconds(), self._idle_s
        if idle_s is None or before_s is None:
            return None
        seconds = time.monotonic() - self._at
        busy = cores() - (idle_s - before_s) / seconds
        return max(0.0, busy - (own_seconds() - self._own_s) / seconds)


def threads_of_model(asked: int | None, observed: Observation | None) -> Threads:
    """Returns how many threads a model computes with on a CPU.

    The threads of a product end together, and OpenMP's threads keep their core busy while they wait: with a
    core less than threads, two threads are several times slower than one. So a core that another program uses
    gets no thread. OMP_NUM_THREADS decides if it is set.

    Args:
        asked: what the user has set; None = one thread per core that other programs leave free.
        observed: what the cores have done since the program started; None = torch's number of threads.
    """
    most = torch.get_num_threads() if observed is None else observed.most_threads()
    if asked is not None or observed is None or most == 1 or "OMP_NUM_THREADS" in os.environ:
        return Threads(asked if asked is not None else most)
    others = observed.used_by_others()
    count = most if others is None else min(most, max(1, int(cores() - others + 0.5)))
    if count == most or others is None:
        return Threads(most)
    return Threads(
        count,
        f"{count} thread{'s' if count > 1 else ''} on {cores()} cores, since other programs use "
        f"{others:.1f} of them (threads={most} takes all; the number changes results by rounding)",
    )


def idle_seconds() -> float | None:
    """Returns how long the cores of this process were idle, added up; None where the system does not say."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    try:
        lines = STATISTICS.read_text().splitlines()
    except OSError:
        return None
    ours = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    ticks = [line.split()[1:] for line in lines if line.split(" ", 1)[0] in ours]
    idle = sum(int(columns[i]) for columns in ticks for i in IDLE_COLUMNS)
    return idle / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Returns the CPU time of this process and of those that it started and that have ended."""
    return sum(os.times()[:4])


OBSERVED = Observation()
