"""Weights & Biases, offline unless WANDB_MODE says otherwise."""

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import yaml

from depthany.system.packages import optional
from depthany.training.loggers.logger import Logger, LogPlace

RUN_FILE = "wandb_run.txt"


class WandbLogger(Logger):
    """Logs to a run of Weights & Biases, which a resumed run continues: its id is kept in wandb_run.txt.

    Its own environment variables count: WANDB_MODE (here offline by default), WANDB_PROJECT (depthany),
    WANDB_ENTITY, WANDB_NAME and others. What is logged again after a resume lies on the same points: curves
    go by the field `step`, since the service does not take steps back.
    """

    title, written = "Weights & Biases", ("wandb", RUN_FILE)

    def __init__(self, place: LogPlace) -> None:
        super().__init__(place)
        self._wandb = _package()
        self.mode = os.environ.get("WANDB_MODE", "offline")
        try:
            self._run = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT", "depthany"),
                name=os.environ.get("WANDB_NAME", place.run_dir.resolve().name),
                id=place.run_id(RUN_FILE, uuid.uuid4().hex[:12]),
                resume="allow",
                mode=self.mode,
                dir=str(place.run_dir),
                config=yaml.safe_load(place.settings),
                settings=self._wandb.Settings(console="off", silent=True),
            )
        except self._wandb.Error as error:
            raise ValueError(
                f"cannot begin a run of Weights & Biases (WANDB_MODE={self.mode}): {error}"
            ) from error
        self._run.define_metric("*", step_metric="step")

    @classmethod
    def require(cls) -> None:
        """Raises MissingPackage if wandb is not installed."""
        _package()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the numbers, with the step as one more."""
        with self._failing_as_os_error():
            self._run.log({"step": step, **values})

    def picture(self, title: str, sheet: np.ndarray, step: int) -> None:
        """Logs a picture, `sheet` [h w 3] uint8 RGB."""
        with self._failing_as_os_error():
            self._run.log({"step": step, title: self._wandb.Image(sheet)})

    def close(self) -> None:
        """Finishes the run, which waits for what is still being written."""
        self._run.finish()

    def how_to_look(self) -> str:
        """Returns the address of the run, or the command that uploads it."""
        if self.mode == "online":
            return str(self._run.url)
        return f"wandb sync {self.place.run_dir / 'wandb' / 'offline-run-*'}"

    @contextmanager
    def _failing_as_os_error(self) -> Iterator[None]:
        try:
            yield
        except self._wandb.Error as error:
            raise OSError(f"Weights & Biases: {error}") from error


def _package() -> Any:
    return optional("wandb", "loggers=[wandb]", extra="wandb")
