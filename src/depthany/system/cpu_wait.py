"""Whether other programs have the CPU that this one could use."""

from pathlib import Path

SCHEDULER = Path("/proc/thread-self/schedstat")  # Linux: nanoseconds on a CPU, and waiting for one


class CpuWait:
    """Measures how long the calling thread was ready to run but had no CPU."""

    def __init__(self) -> None:
        self._before = self._read()

    def share(self) -> float | None:
        """Returns the share 0..1 of waiting in the time since the last call that was not spent asleep.

        None where the system does not say, or nothing was done.
        """
        before, now = self._before, self._read()
        self._before = now
        if before is None or now is None:
            return None
        ran, waited = (new - old for new, old in zip(now, before))
        return waited / (ran + waited) if ran + waited > 0 else None

    def _read(self) -> tuple[int, int] | None:
        try:
            ran, waited, *_ = SCHEDULER.read_text().split()
        except (OSError, ValueError):
            return None
        return int(ran), int(waited)
