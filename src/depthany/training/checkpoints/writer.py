"""Checkpoints written in the background: the loop waits for a copy of the state, not for the disk."""

import copy
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
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
    PROGRESS_FILE,
    SHARDED_SUFFIX,
    Progress,
    TrainingState,
    checkpoint_name,
    of_best,
    prune,
    write_checkpoint,
)

IF_SAVE_FAILS = ("stop", "continue")


class HostCopy:
    """Copies nested state into CPU memory.

    Reuses the host buffer: fresh pages are slow to fault in.
    """

    def __init__(self) -> None:
        self._memory: list[Tensor] = []

    def take(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the payload with every tensor and plain value copied; overwrites the copy before."""
        tensors = list(_tensors(payload))
        if [_layout(tensor) for tensor in tensors] != [_layout(tensor) for tensor in self._memory]:
            self._memory = [torch.empty_like(tensor, device="cpu") for tensor in tensors]
        copies = {id(tensor): kept.copy_(tensor) for tensor, kept in zip(tensors, self._memory)}
        return copy.deepcopy(dict(payload), copies)  # finds each tensor copied already


class CheckpointWriter:
    """Writes the checkpoints of one run, at most one state at a time, in a thread of its own.

    `save` copies the state before it returns, since the optimizer changes tensors in place; it first waits
    for the write of the state before. A `with` block ends when all is written, also where an exception ends
    it. A write that fails leaves earlier checkpoints as they are.

    Args:
        folder: folder of the checkpoints, which no other run writes to.
        keep: newest checkpoints kept, besides the best; older ones are deleted once a newer is durable.
        if_fails: "stop": the next `save` or `wait` raises; "continue": the next `save` tries again.
        tell: receives a line on each write that failed under "continue", from the thread.
        written_step: step of the newest checkpoint that is already there; 0 = none.
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
        self._copied: dict[str, Any] = {}  # the Progress that the payload belongs to
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._under_way: list[Future[object]] = []

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits for the write under way. If an exception ends the block, a failed write is only reported."""
        try:
            self.wait()
        except Exception as failure:
            if error is None:
                raise
            self._tell(f"warning: {failure}")
        finally:
            self._thread.shutdown()

    def save(self, state: TrainingState) -> None:
        """Copies the state and starts its write as the checkpoint of its step, which then deletes older ones.

        Raises:
            ValueError: an earlier write failed, under "stop".
        """
        self._copy_state(state)
        self._start(self._write_newest, state.progress.step)

    def save_best(self, state: TrainingState) -> bool:
        """Like `save`, as the best checkpoint so far. At the step of a `save` the two share one copy.

        Returns:
            False if it could not be written, under "continue", which waits for the write.
        """
        self._copy_state(state)
        path, payload = self._folder / BEST_FILE, of_best(self._payload)
        return self._start_best(path, payload)

    def save_progress(self, progress: Progress) -> None:
        """Writes the progress after the validation of a step, once the best checkpoint is written."""
        path = self._folder / PROGRESS_FILE
        self._start(self._attempt, path, partial(replace(progress).write, path))

    def wait(self) -> None:
        """Returns when all is written.

        Raises:
            ValueError: a write failed, under "stop".
        """
        pending, self._under_way = self._under_way, []
        for write in pending:
            write.result()

    def newest(self) -> str:
        """Returns the newest checkpoint that is written, in words."""
        return f"step {self.written_step}" if self.written_step else "its start: there is no checkpoint yet"

    def _copy_state(self, state: TrainingState) -> None:
        if asdict(state.progress) != self._copied:  # else this is the state that is being written
            self.wait()
            self._payload = self._take(state)
            self._copied = asdict(state.progress)

    def _take(self, state: TrainingState) -> dict[str, Any]:
        return self._copy.take(state.payload())

    def _start(self, write: Callable[..., object], *arguments: object) -> Future[object]:
        self._under_way.append(self._thread.submit(write, *arguments))
        return self._under_way[-1]

    def _start_best(self, path: Path, payload: Mapping[str, Any]) -> bool:
        write = self._start(self._attempt, path, partial(write_checkpoint, path, payload))
        return not self._goes_on or bool(write.result())

    def _write_newest(self, step: int) -> None:
        path = self._folder / checkpoint_name(step)
        if self._attempt(path, partial(write_checkpoint, path, self._payload)):
            self._written(step)

    def _written(self, step: int) -> None:
        """Notes that a checkpoint is durable, and deletes those that are too old."""
        self.written_step = step
        try:
            prune(self._folder, step, self._keep)
        except OSError as error:
            self._tell(f"warning: cannot delete the older checkpoints in {self._folder}: {why(error)}")

    def _attempt(self, path: Path, write: Callable[[], object]) -> bool:
        """Returns whether it could be written; under "stop" raises a ValueError if not."""
        try:
            write()
        except ValueError as error:
            self.failed += 1
            if not self._goes_on:
                raise ValueError(
                    f"{error}; if_save_fails=stop ends the run here: make room, then the same command "
                    f"continues from {self.newest()}"
                ) from error
            self._tell(
                f"warning: {error}; if_save_fails=continue: training goes on, the next save tries again "
                f"({self.failed} failed so far)"
            )
            return False
        return True


class ShardedWriter(CheckpointWriter):
    """Writes a state that is sharded among ranks: each writes its shards, see checkpoints/sharded.py.

    All ranks save together. The best model is gathered and written as one file by rank 0, weights only.

    Args:
        processes: those of the run. `folder`, `keep`, `if_fails` are the same on all ranks.
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

    def save_best(self, state: TrainingState) -> bool:
        """Writes the full weights of the best model so far; a run cannot resume from them."""
        payload = of_best(state.payload())
        payload["model"] = {name: full(tensor).cpu() for name, tensor in payload["model"].items()}
        if not self._is_main:
            return True
        kept = ("model", "model_config", "quantity", "plugins", "state")
        return self._start_best(self._folder / BEST_FILE, {key: payload[key] for key in kept})

    def save_progress(self, progress: Progress) -> None:
        """Writes it on rank 0."""
        if self._is_main:
            super().save_progress(progress)

    def _take(self, state: TrainingState) -> dict[str, Any]:
        payload = state.payload()
        shards = self._copy.take(local_tensors(payload))
        return {"tensors": on_mesh(payload, shards, self._mesh), "plain": plain_of(payload)}

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


class NullWriter:
    """The writer of a rank that leaves writing to rank 0."""

    written_step = 0

    def __enter__(self) -> "NullWriter":
        return self

    def __exit__(self, *_error: object) -> None: ...
    def save(self, state: TrainingState) -> None: ...
    def save_progress(self, progress: Progress) -> None: ...
    def wait(self) -> None: ...
    def save_best(self, state: TrainingState) -> bool:
        return True

    def newest(self) -> str:
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
