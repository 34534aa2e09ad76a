"""Maps that a device still computes while the program reads the next images and writes the last ones."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


class Launched:
    """Results of a batch on their way from the device. A CPU has computed them already.

    On a GPU the copies to page-locked memory are queued behind the computation, so that the thread that
    launched it goes on at once, and those that use the results wait for them.

    Args:
        results: results of each image, any shape.
        is_finite: [b] bool, whether the map of each image is.
        clock: started before the computation.
    """

    def __init__(self, results: Sequence[Tensor], is_finite: Tensor, clock: "DeviceClock") -> None:
        self._results = [_to_host(each) for each in results]
        self._is_finite, self._clock = _to_host(is_finite), clock
        clock.stop()

    def wait(self) -> tuple[list[Tensor], Tensor, float]:
        """Returns results and `is_finite` in memory, and the seconds that the device took, when all are
        there.
        """
        return self._results, self._is_finite, self._clock.seconds()


@dataclass(frozen=True)
class Pending:
    """The result of one image of a `Launched` batch.

    Attributes:
        index: index of the image in its batch.
        refuse: called where the map of the image is not finite; raises.
        note_seconds: called once for a batch with the seconds that the device took; threads may call it.
    """

    batch: Launched
    index: int
    refuse: Callable[[], object] | None = None
    note_seconds: Callable[[float], object] | None = None

    def wait(self) -> NDArray[Any]:
        """Returns the result when it is there.

        Raises:
            ValueError: the map is not finite, and `refuse` refuses it.
        """
        results, is_finite, seconds = self.batch.wait()
        if self.note_seconds is not None and self.index == 0:
            self.note_seconds(seconds)
        if self.refuse is not None and not is_finite[self.index]:
            self.refuse()
        return results[self.index].numpy()


class DeviceClock:
    """The time that a device takes for what is queued between the start of the clock and `stop`."""

    def __init__(self, device: torch.device) -> None:
        self._events: tuple[Any, ...] = ()
        if device.type == "cuda":
            self._events = tuple(torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._events[0].record()
        self._began = self._ended = time.monotonic()

    def stop(self) -> None:
        """Queues the end behind all work of the device."""
        self._ended = time.monotonic()
        if self._events:
            self._events[1].record()

    def seconds(self) -> float:
        """Waits for the end; returns the seconds from the start to it."""
        if not self._events:
            return self._ended - self._began
        first, last = self._events
        last.synchronize()
        return float(first.elapsed_time(last)) / 1000


def stacked(inputs: Sequence[Tensor], device: torch.device) -> Tensor:
    """Returns inputs of one shape as a batch, on a GPU without waiting for the copy.

    Args:
        inputs: [3 h w] each, in memory.
    """
    if device.type != "cuda":
        return torch.stack(list(inputs)).to(device)
    shape = (len(inputs), *inputs[0].shape)
    batch = torch.empty(shape, dtype=inputs[0].dtype, pin_memory=True)  # [b 3 h w]
    return torch.stack(list(inputs), out=batch).to(device, non_blocking=True)


def _to_host(tensor: Tensor) -> Tensor:
    """Copies a GPU tensor of any shape to page-locked memory, queued behind the GPU's work."""
    if not tensor.is_cuda:
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
