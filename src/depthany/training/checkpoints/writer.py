"""Checkpoints written in the background: the loop waits for a copy of the state, not for the disk."""

import copy
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from depthany.system.distributed import Processes, full
from depthany.system.files import why
from depthany.training.checkpoints.sharded import local_tensors, on_mesh, plain_of, write_sharded
from depthany.training.checkpoints.state import (
    BEST_FILE,
    SHARDED_SUFFIX,
    Parts,
    checkpoint_name,
    prune,
    write_checkpoint,
)

IF_SAVE_FAILS = ("stop", "continue")


class HostCopy:
    """A copy of nested state in CPU memory that is taken once and filled anew each time.

    Memory that was used before is a copy away; fresh memory has to be asked of the system page by page.
    """

    def __init__(self) -> None:
        self._memory: list[Tensor] = []

    def take(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The payload with every tensor and every plain value copied; the one before is overwritten."""
        tensors = list(_tensors(payload))
        if [_layout(tensor) for tensor in tensors] != [_layout(tensor) for tensor in self._memory]:
            self._memory = [torch.empty_like(tensor, device="cpu") for tensor in tensors]
        copies = {id(tensor): kept.copy_(tensor) for tensor, kept in zip(tensors, self._memory)}
        return copy.deepcopy(dict(payload), copies)  # finds each tensor copied already


class CheckpointWriter:
    """Writes the checkpoints of one run, at most one state at a time, in a thread of its own.

    The state is copied before `save` returns, since the optimizer changes tensors in place; the next one is
    copied when the last is written. A `with` block ends when all is written, also where an exception ends
    it. A write that fails leaves the checkpoints before it as they are.

    Args:
        folder: of the checkpoints, which no other run writes to.
        keep: newest checkpoints kept, besides the best; older ones are deleted once a newer is durable.
        if_fails: "stop": the next `save` or `wait` raises; "continue": the next `save` tries again.
        tell: takes a line on each write that failed under "continue", from the thread.
        written_step: of the newest checkpoint that is already there; 0 = none.
    """

    def __init__(
        self, folder: Path, keep: int, if_fails: str, tell: Callable[[str], None], written_step: int = 0
    ) -> None:
        assert if_fails in IF_SAVE_FAILS
        self.written_step = written_step
        self.failed = 0  # writes so far
        self._folder, self._keep, self._tell = folder, keep, tell
        self._goes_on = if_fails == "continue"
        self._copy = HostCopy()
        self._payload: dict[str, Any] = {}
        self._copied: dict[str, Any] = {}  # the TrainState that the payload is of
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._under_way: list[Future[object]] = []

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the write under way. Where an exception ends the block, a failed write is told, and the
        exception goes on.
        """
        try:
            self.wait()
        except Exception as failure:
            if error is None:
                raise
            self._tell(f"warning: {failure}")
        finally:
            self._thread.shutdown()

    def save(self, parts: Parts) -> None:
        """Copy the state and have it written as the checkpoint of its step; older ones are deleted after it.

        Raises:
            ValueError: an earlier write failed, under "stop".
        """
        self._copy_state(parts)
        self._start(self._write_newest, parts.state.step)

    def save_best(self, parts: Parts) -> None:
        """The same as the best so far. At the step of a `save` the two share one copy."""
        self._copy_state(parts)
        path, payload = self._folder / BEST_FILE, self._payload
        self._start(self._attempt, path, partial(write_checkpoint, path, payload))

    def wait(self) -> None:
        """Return when all is written.

        Raises:
            ValueError: a write failed, under "stop".
        """
        pending, self._under_way = self._under_way, []
        for write in pending:
            write.result()

    def newest(self) -> str:
        """The newest checkpoint that is written, in words."""
        return f"step {self.written_step}" if self.written_step else "its start: there is no checkpoint yet"

    def _copy_state(self, parts: Parts) -> None:
        if vars(parts.state) != self._copied:  # else this is the state that is being written
            self.wait()
            self._payload = self._take(parts)
            self._copied = dict(vars(parts.state))

    def _take(self, parts: Parts) -> dict[str, Any]:
        return self._copy.take(parts.payload())

    def _start(self, write: Callable[..., object], *arguments: object) -> None:
        self._under_way.append(self._thread.submit(write, *arguments))

    def _write_newest(self, step: int) -> None:
        path = self._folder / checkpoint_name(step)
        if self._attempt(path, partial(write_checkpoint, path, self._payload)):
            self._written(step)

    def _written(self, step: int) -> None:
        """A checkpoint is durable: those that are too old for it go."""
        self.written_step = step
        try:
            prune(self._folder, step, self._keep)
        except OSError as error:
            self._tell(f"warning: cannot delete the older checkpoints in {self._folder}: {why(error)}")

    def _attempt(self, path: Path, write: Callable[[], object]) -> bool:
        """Whether it could be written; raises a `ValueError` if not, under "stop"."""
        try:
            write()
        except ValueError as error:
            self.failed += 1
            if not self._goes_on:
                raise ValueError(
                    f"{error}; if_save_fails=stop ends the run here: make room, and the same command goes on "
                    f"from {self.newest()}"
                ) from error
            self._tell(
                f"warning: {error}; if_save_fails=continue: training goes on, the next save tries again "
                f"({self.failed} failed so far)"
            )
            return False
        return True


class ShardedWriter(CheckpointWriter):
    """The same for a state that is split among processes: each writes its pieces, see sharded_checkpoint.py.

    All of them save together. The best model is gathered and written whole by process 0, as weights alone.

    Args:
        processes: those of the run; `folder`, `keep`, `if_fails` are equal in all, and `tell` that of each.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        if_fails: str,
        tell: Callable[[str], None],
        written_step: int,
        processes: Processes,
    ) -> None:
        super().__init__(folder, keep, if_fails, tell, written_step)
        self._is_main = processes.is_main
        group = dist.new_group(backend="gloo")  # the thread's own: training goes on in the others
        assert isinstance(group, dist.ProcessGroup)
        self._group = group
        self._mesh = init_device_mesh("cpu", (processes.size,))

    def save_best(self, parts: Parts) -> None:
        """The weights of the best model so far, whole; a run cannot go on from them."""
        whole = {name: full(tensor).cpu() for name, tensor in parts.model.state_dict().items()}
        if self._is_main:
            path, payload = self._folder / BEST_FILE, parts.payload()
            best = {"model": whole, "model_config": payload["model_config"], "state": payload["state"]}
            self._start(self._attempt, path, partial(write_checkpoint, path, best))

    def _take(self, parts: Parts) -> dict[str, Any]:
        payload = parts.payload()
        pieces = self._copy.take(local_tensors(payload))
        return {"tensors": on_mesh(payload, pieces, self._mesh), "plain": plain_of(payload)}

    def _write_newest(self, step: int) -> None:
        path = self._folder / checkpoint_name(step, SHARDED_SUFFIX)
        tensors, plain = self._payload["tensors"], self._payload["plain"]
        written = False
        try:
            written = self._attempt(path, partial(write_sharded, path, tensors, plain, self._group))
        finally:
            if self._is_main and not written:
                shutil.rmtree(path, ignore_errors=True)  # half of it would take room and count for nothing
        if written and self._is_main:
            self._written(step)
        elif written:
            self.written_step = step


class NoWriter:
    """The writer of a process that leaves writing to process 0."""

    written_step = 0

    def __enter__(self) -> "NoWriter":
        return self

    def __exit__(self, *_error: object) -> None:
        """Nothing."""

    def save(self, parts: Parts) -> None:
        """Nothing."""

    def save_best(self, parts: Parts) -> None:
        """Nothing."""

    def wait(self) -> None:
        """Nothing."""

    def newest(self) -> str:
        """Nothing."""
        return ""


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def _layout(tensor: Tensor) -> tuple[torch.Size, tuple[int, ...], torch.dtype]:
    return tensor.shape, tensor.stride(), tensor.dtype
