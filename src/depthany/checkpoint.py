"""Atomic checkpoints and exact resume.

Everything random is a function of (seed, step), so `Parts` is the whole state of a run.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from depthany.files import write_atomically
from depthany.models.depth_model import DepthModel
from depthany.stages import trained_state

logger = logging.getLogger(__name__)


@dataclass
class TrainState:
    """What the loop changes besides networks and optimizer. Timers are not saved; they restart on resume."""

    step: int = 0
    best_abs_rel: float = math.inf


@dataclass
class Parts:
    """All that training changes, and exactly what a checkpoint holds; of the stage, what it trains."""

    model: DepthModel
    stage: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    state: TrainState = field(default_factory=TrainState)

    def payload(self) -> dict[str, Any]:
        """State as tensors and plain values, of types that `torch.load(weights_only=True)` takes."""
        return {
            "model": self.model.state_dict(),
            "model_config": self.model.config,
            "stage": trained_state(self.stage),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "state": asdict(self.state),
        }

    def restore(self, payload: Mapping[str, Any]) -> None:
        """Take over a payload."""
        self.model.load_state_dict(payload["model"])
        assert payload["stage"].keys() == trained_state(self.stage).keys()
        self.stage.load_state_dict(payload["stage"], strict=False)  # what is frozen is not in the file
        self.optimizer.load_state_dict(payload["optimizer"])
        self.scaler.load_state_dict(payload["scaler"])
        self.state.__dict__.update(payload["state"])


def save_parts(path: Path, parts: Parts) -> None:
    """Write one checkpoint file, whole or not at all; raises a `ValueError` where it cannot be written."""
    write_atomically(path, lambda partial: torch.save(parts.payload(), partial))


def save_checkpoint(folder: Path, parts: Parts, keep: int) -> None:
    """Write `folder/step_NNNNNNNN.pt`, then delete all but the newest `keep`."""
    save_parts(folder / f"step_{parts.state.step:08d}.pt", parts)
    for old in list_checkpoints(folder)[:-keep]:
        old.unlink()


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in `folder`, oldest first."""
    return sorted(folder.glob("step_*.pt"))


def load_latest(folder: Path) -> dict[str, Any] | None:
    """Payload of the newest readable checkpoint, or None where there is none.

    A damaged one is named in the log and passed over.

    Raises:
        ValueError: there are checkpoints, and none of them can be read.
    """
    paths = list_checkpoints(folder)
    for path in reversed(paths):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (
            Exception
        ) as error:  # whatever a damaged zip raises; named here, and fatal below if none is left
            logger.warning("%s is damaged (%s): trying the one before", path, str(error).split("\n", 1)[0])
    if paths:
        raise ValueError(
            f"{folder}: none of {len(paths)} checkpoints can be read; overwrite=true starts anew"
        )
    return None
