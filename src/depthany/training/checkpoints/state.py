"""Checkpoints that are whole or not there, and exact resume.

Everything random is a function of (seed, step), so `Parts` is the whole state of a run.
"""

import math
import os
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from depthany.models.model import DenseModel
from depthany.system.files import write_atomically
from depthany.training.stages.base import trained_state

BEST_FILE = "best.pt"
FILE_SUFFIX, SHARDED_SUFFIX = ".pt", ".dcp"  # of a file; of a folder, see sharded_checkpoint.py
_SEAL = b"depthany checkpoint crc32 %08x"  # the comment of the zip file; other readers pass over it
_SEAL_BYTES = len(_SEAL % 0)


@dataclass
class TrainState:
    """What the loop changes besides networks and optimizer. Timers are not saved; they restart on resume."""

    step: int = 0
    best_abs_rel: float = math.inf


@dataclass
class Parts:
    """All that training changes, and exactly what a checkpoint holds; of the stage, what it trains."""

    model: DenseModel
    stage: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    state: TrainState = field(default_factory=TrainState)

    def payload(self) -> dict[str, Any]:
        """State as tensors and plain values, of types that `torch.load(weights_only=True)` takes."""
        return {
            "model": self.model.state_dict(),
            "model_config": self.model.config,
            "quantity": self.model.quantity.to_config(),
            "stage": trained_state(self.stage),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "state": asdict(self.state),
        }

    def restore(self, payload: Mapping[str, Any]) -> None:
        """Take over a payload."""
        assert payload["stage"].keys() == trained_state(self.stage).keys()
        self.model.load_state_dict(_split_as(self.model.state_dict(), payload["model"]))
        stage_state = _split_as(self.stage.state_dict(), payload["stage"])
        self.stage.load_state_dict(stage_state, strict=False)  # what is frozen is not in the file
        parameters = [each for group in self.optimizer.param_groups for each in group["params"]]
        split = {
            index: {name: _split(parameters[index], tensor) for name, tensor in state.items()}
            for index, state in payload["optimizer"]["state"].items()
        }
        self.optimizer.load_state_dict({**payload["optimizer"], "state": split})
        self.scaler.load_state_dict(payload["scaler"])
        self.state.__dict__.update(payload["state"])


def _split_as(own: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: _split(own[name], tensor) if name in own else tensor for name, tensor in whole.items()}


def _split(own: Tensor, whole: Tensor) -> Tensor:
    """`whole`, or where this process has a piece of `own` (FSDP2) the same piece of `whole`."""
    if not isinstance(own, DTensor) or whole.shape != own.shape:  # a step counter is whole everywhere
        return whole
    whole = whole.to(own.device).contiguous()  # as FSDP's pieces are: the fused AdamW goes by memory order
    return distribute_tensor(whole, own.device_mesh, own.placements, src_data_rank=None)


def checkpoint_name(step: int, suffix: str = FILE_SUFFIX) -> str:
    """Name of the checkpoint after `step` steps; names sort as steps do."""
    return f"step_{step:08d}{suffix}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in `folder`, files and those of several processes, oldest first."""
    return sorted(path for suffix in (FILE_SUFFIX, SHARDED_SUFFIX) for path in folder.glob(f"step_*{suffix}"))


def write_checkpoint(path: Path, payload: Mapping[str, Any]) -> None:
    """Write one checkpoint file, whole or not at all; raises a `ValueError` where it cannot be written."""

    def fill(partial: Path) -> None:
        try:
            torch.save(payload, partial)
            _seal(partial)
        except (RuntimeError, zipfile.BadZipFile):
            _write_more(partial)  # torch does not say what failed; the system does
            raise

    write_atomically(path, fill)


def _seal(path: Path) -> None:
    """Make the CRC-32 of all bytes before it the comment of the zip file that torch wrote."""
    with zipfile.ZipFile(path):  # torch closes its file without a look at whether the end went in
        pass
    with open(path, "rb+") as file:
        file.seek(-2, os.SEEK_END)  # length of the comment, so far 0
        file.write(_SEAL_BYTES.to_bytes(2, "little"))
        file.seek(0)
        checksum = _crc32(file, path.stat().st_size)
        file.seek(0, os.SEEK_END)
        file.write(_SEAL % checksum)


def _crc32(file: BinaryIO, count: int) -> int:
    """Of the next `count` bytes."""
    checksum, block = 0, memoryview(bytearray(1 << 20))
    while count > 0 and (read := file.readinto(block[:count])):  # type: ignore[attr-defined]
        checksum, count = zlib.crc32(block[:read], checksum), count - read
    return checksum


def _write_more(path: Path) -> None:
    """Raise the `OSError` (disk full, file too large, quota) that ends a write to this file, if one does."""
    with open(path, "ab") as file:
        file.write(bytes(1 << 20))


def prune(folder: Path, step: int, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints up to `step`, which has just been written.

    A newer one is damaged, or the run had gone on from it: it goes too, so that it counts for nothing.
    """
    paths = list_checkpoints(folder)
    kept = [path for path in paths if path.stem <= checkpoint_name(step, "")][-keep:]
    for path in paths:
        if path not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Payload of a checkpoint file, on the CPU; a damaged file raises whatever its bytes lead to.

    Every byte is read twice: `torch.load` checks no checksum, and takes a flipped bit for a weight. Those
    that `torch.save` writes do not cover the places of the tensors in the file.
    """
    with open(path, "rb") as file:
        size = path.stat().st_size - _SEAL_BYTES
        checksum = _crc32(file, size)
        seal = file.read()
    if seal.startswith(_SEAL[: _SEAL.index(b"%")]):
        if seal != _SEAL % checksum:
            raise ValueError("its checksum is not that of its bytes")
    elif seal[-22:-18] != b"PK\5\6" or seal[-2:] != b"\0\0":  # the end of a file from before the seal
        raise ValueError("its end is missing")
    else:
        _check_records(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _check_records(path: Path) -> None:
    with zipfile.ZipFile(path) as file:
        if (damaged := file.testzip()) is not None:
            raise ValueError(f"the checksum of {damaged} is not that of its bytes")
