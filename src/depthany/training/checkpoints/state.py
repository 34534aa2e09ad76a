"""Checkpoints that are either complete or absent, and exact resume.

Everything random is a function of (seed, step), so `TrainingState` is the whole state of a run.
"""

import json
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
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from depthany.models.model import DenseModel
from depthany.system.files import write_atomically
from depthany.system.plugins import loaded_plugins
from depthany.training.ema import WeightAverage
from depthany.training.stages.base import Stage, trained_state

BEST_FILE, PROGRESS_FILE = "best.pt", "progress.json"
FILE_SUFFIX, SHARDED_SUFFIX = ".pt", ".dcp"  # of a file; of a folder, see checkpoints/sharded.py
_SEAL = b"depthany checkpoint crc32 %08x"  # the comment of the zip file; other readers pass over it
_SEAL_START, _SEAL_BYTES = _SEAL[: _SEAL.index(b"%")], len(_SEAL % 0)


@dataclass
class Progress:
    """How far a run has come. Timers are not saved; they restart on resume.

    step: optimizer steps done.
    validated_step: step of the last validation; 0 = none yet. A checkpoint is saved before the validation of
        its step, and PROGRESS_FILE after it.
    best_score: best value so far of the stage's primary metric; None = no validation yet.
    score_to_beat, validations_without_gain: see `early_stopping.note_score`.
    steps_in_a_row: see `alignment_watch.AlignmentWatch`, which changes it.
    threads: CPU threads of the model; another number would change the results by rounding.
    saved_score: score of the model in BEST_FILE; a write that failed leaves it behind `best_score`.
    """

    step: int = 0
    best_score: float | None = None
    score_to_beat: float | None = None
    validations_without_gain: int = 0
    validated_step: int = 0
    steps_in_a_row: dict[str, float] = field(default_factory=dict)
    threads: int | None = None
    saved_score: float | None = None

    def write(self, path: Path) -> None:
        """Writes it as JSON. Raises ValueError if it cannot be written."""
        text = json.dumps(asdict(self)) + "\n"
        write_atomically(path, lambda partial: partial.write_text(text))

    def read(self, path: Path) -> None:
        """Takes what was written after the validation of this step; does nothing if there was none."""
        try:
            saved = json.loads(path.read_text())
            if saved["step"] == self.step:
                self.restore(saved)
        except (OSError, ValueError, KeyError, TypeError):  # then the validation is done again
            return

    def forget_scores(self) -> None:
        """Forgets the scores, which were those of other validation sets."""
        self.best_score = self.score_to_beat = self.saved_score = None
        self.validations_without_gain = self.validated_step = 0

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Takes the values from a checkpoint.

        Older ones have the score as best_abs_rel, and were saved after the validation of their step.
        """
        self.step = saved["step"]
        self.validated_step = saved.get("validated_step", self.step)
        best = saved["best_score"] if "best_score" in saved else saved["best_abs_rel"]
        self.best_score = None if best is None or math.isinf(best) else best
        self.score_to_beat = saved.get("score_to_beat", self.best_score)
        self.validations_without_gain = saved.get("validations_without_gain", 0)
        self.steps_in_a_row = dict(saved.get("steps_in_a_row", {}))
        self.threads = saved.get("threads")
        self.saved_score = saved.get("saved_score", self.best_score)


@dataclass
class TrainingState:
    """All that training changes, and exactly what a checkpoint holds; of the stage, only what it trains.

    average: average of the model's weights, scored and saved in their place; None = no averaging.
    """

    model: DenseModel
    stage: Stage
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    progress: Progress = field(default_factory=Progress)
    average: WeightAverage | None = None

    def payload(self) -> dict[str, Any]:
        """Returns the state as tensors and plain values, as `torch.load(weights_only=True)` takes them."""
        return {
            "model": self.model.state_dict(),
            **({"ema": self.average.tensors} if self.average is not None else {}),
            "model_config": self.model.config,
            "quantity": self.model.quantity.to_config(),
            "plugins": loaded_plugins(),
            "stage": trained_state(self.stage),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "state": asdict(self.progress),
        }

    def restore(self, payload: Mapping[str, Any]) -> None:
        """Loads a payload of whole tensors; where this run shards them, each rank takes its shards.

        Raises:
            ValueError: the run averages its weights, and the payload has no averages.
        """
        if self.average is not None:
            require_averages("ema" in payload)
            for name, tensor in _shard_like(self.average.tensors, payload["ema"]).items():
                self.average.tensors[name].copy_(tensor)
        own_stage = trained_state(self.stage)
        assert payload["stage"].keys() == own_stage.keys()
        self.model.load_state_dict(_shard_like(self.model.state_dict(), payload["model"]))
        stage_state = _shard_like(own_stage, payload["stage"])
        self.stage.load_state_dict(stage_state, strict=False)  # what is frozen is not in the file
        own_groups = self.optimizer.param_groups
        parameters = [each for group in own_groups for each in group["params"]]
        state = {
            index: {name: _shard(parameters[index], value) for name, value in values.items()}
            for index, values in payload["optimizer"]["state"].items()
        }
        # Which kernel takes the step depends on this run's device, and not on that of the checkpoint.
        groups = [
            saved | {key: own[key] for key in ("fused", "foreach") if key in own}
            for saved, own in zip(payload["optimizer"]["param_groups"], own_groups, strict=True)
        ]
        self.optimizer.load_state_dict({"param_groups": groups, "state": state})
        self.restore_scaler(payload["scaler"])
        self.progress.restore(payload["state"])

    def restore_scaler(self, saved: Mapping[str, Any]) -> None:
        """Takes the scale of fp16's losses; a run that had another precision so far has none."""
        if saved:
            self.scaler.load_state_dict(dict(saved))


def require_averages(present: bool) -> None:
    """Raises a ValueError unless a checkpoint has the averages that a run with `ema.decay` goes on from."""
    if not present:
        raise ValueError(
            "the checkpoint has no averaged weights, and an average that begins in the middle would differ "
            "from the run's: resume with ema.decay=null, or start from scratch with overwrite=true"
        )


def of_best(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the payload for the best checkpoint, whose model is the one that was scored."""
    rest = {key: value for key, value in payload.items() if key != "ema"}
    return rest | {"model": payload["model"] | payload.get("ema", {})}


def _shard_like(own: Mapping[str, Tensor], full: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: _shard(own[name], tensor) if name in own else tensor for name, tensor in full.items()}


def _shard(own: Tensor, full: Any) -> Any:
    """Returns `full`, or this rank's shard of it where `own` is a shard (FSDP2)."""
    if not isinstance(own, DTensor) or not isinstance(full, Tensor) or full.shape != own.shape:
        return full  # a step counter is not sharded, and the momentum of SGD without momentum is None
    full = full.to(own.device).contiguous()  # as FSDP's shards are: the fused AdamW goes by memory order
    return distribute_tensor(full, own.device_mesh, own.placements, src_data_rank=None)


def checkpoint_name(step: int, suffix: str = FILE_SUFFIX) -> str:
    """Returns the name of the checkpoint after `step` steps; names sort as steps do."""
    return f"step_{step:08d}{suffix}"


def step_of(checkpoint: Path) -> int:
    """Returns the number of steps before a checkpoint, from its name."""
    return int(checkpoint.stem.removeprefix("step_"))


def list_checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints in `folder`, files and sharded ones, oldest first."""
    found = (path for suffix in (FILE_SUFFIX, SHARDED_SUFFIX) for path in folder.glob(f"step_*{suffix}"))
    return sorted(path for path in found if path.stem.removeprefix("step_").isdecimal())


def write_checkpoint(path: Path, payload: Mapping[str, Any]) -> None:
    """Writes one checkpoint file, whole or not at all; raises a ValueError if it cannot be written."""

    def fill(partial: Path) -> None:
        try:
            torch.save(payload, partial)
            _seal(partial)
        except (RuntimeError, zipfile.BadZipFile):
            _write_more(partial)  # torch does not say what failed; the system does
            raise

    write_atomically(path, fill)


def _seal(path: Path) -> None:
    """Appends the CRC-32 of all bytes before it, as the comment of the zip file that torch wrote."""
    with zipfile.ZipFile(path):  # torch does not check whether the end of its file was written
        pass
    with open(path, "rb+") as file:
        file.seek(-2, os.SEEK_END)  # length of the comment, so far 0
        file.write(_SEAL_BYTES.to_bytes(2, "little"))
        file.seek(0)
        checksum = _crc32(file, path.stat().st_size)
        file.seek(0, os.SEEK_END)
        file.write(_SEAL % checksum)


def _crc32(file: BinaryIO, count: int) -> int:
    """Returns the CRC-32 of the next `count` bytes."""
    checksum, block = 0, memoryview(bytearray(1 << 20))
    while count > 0 and (read := file.readinto(block[:count])):  # type: ignore[attr-defined]
        checksum, count = zlib.crc32(block[:read], checksum), count - read
    return checksum


def _write_more(path: Path) -> None:
    """Raises the OSError (disk full, file too large, quota) that a further write ends in, if any."""
    with open(path, "ab") as file:
        file.write(bytes(1 << 20))


def prune(folder: Path, step: int, keep: int) -> None:
    """Deletes all but the newest `keep` checkpoints up to `step`, which has just been written.

    A later one is damaged, or the run resumed from an earlier one: it is deleted too, so that no resume takes
    it.
    """
    paths = list_checkpoints(folder)
    kept = [path for path in paths if path.stem <= checkpoint_name(step, "")][-keep:]
    for path in paths:
        if path not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Returns the payload of a checkpoint file, on the CPU; a damaged file can raise anything.

    Every byte is read twice: `torch.load` checks no checksum, and takes a flipped bit for a weight. Those
    that `torch.save` writes do not cover the places of the tensors in the file.
    """
    with open(path, "rb") as file:
        checksum = _crc32(file, path.stat().st_size - _SEAL_BYTES)
        seal = file.read()
    if seal[: len(_SEAL_START)] != _SEAL_START:
        raise ValueError("its end is missing")
    if seal != _SEAL % checksum:
        raise ValueError("its checksum does not match its bytes")
    return torch.load(path, map_location="cpu", weights_only=True)
