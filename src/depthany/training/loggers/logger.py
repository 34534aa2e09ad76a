"""The contract of a logger: a place where a run writes its numbers and pictures."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from depthany.system.files import write_atomically

Setting = str | float | bool
SCORES = "val/"  # prefix of the names of scores


@dataclass(frozen=True)
class LogPlace:
    """The run that a logger writes for.

    run_dir: folder of the run, where a logger keeps what it needs.
    start_step: step of the checkpoint that the run resumes from, 0 for a new run. What was logged after it is
        logged again, with the same numbers.
    settings: the resolved configuration as YAML.
    validated_step: step of the last validation; later scores are logged again. None: `start_step`.
    """

    run_dir: Path
    start_step: int
    settings: str
    validated_step: int | None = None

    def run_id(self, file_name: str, new: str) -> str:
        """Returns the id that a resumed run has at a service, kept in a file of the run directory.

        Args:
            new: id of a run that has none yet.
        """
        path = self.run_dir / file_name
        if not path.exists():
            write_atomically(path, lambda partial: partial.write_text(new + "\n"))
        return path.read_text().strip()


class Logger:
    """Writes numbers and pictures of one run; only the main process has loggers.

    A write that fails raises an OSError. What becomes of it (`if_save_fails`) is not the logger's business.

    Class attributes:
        title: for messages.
        written: patterns of the files and folders that it writes in the run directory; `overwrite=true`
            deletes them.
    """

    title: ClassVar[str] = "the log"
    written: ClassVar[tuple[str, ...]] = ()

    def __init__(self, place: LogPlace) -> None:
        self.place = place

    @classmethod
    def require(cls) -> None:
        """Raises ValueError if it cannot be used here, for example because a package is missing."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the numbers of a step."""
        raise NotImplementedError(f"{type(self).__name__} has no scalars")

    def picture(self, title: str, sheet: np.ndarray, step: int) -> None:
        """Writes a picture, `sheet` [h w 3] uint8 RGB; a logger of numbers only skips it."""

    def summary(self, settings: Mapping[str, Setting], scores: Mapping[str, float]) -> None:
        """Writes what compares finished runs: a few settings, and final scores by their names in the log."""

    def recover(self) -> None:
        """Prepares for the next write after one that failed."""

    def close(self) -> None:
        """Writes what is left, and closes; may be called twice."""

    def how_to_look(self) -> str:
        """Returns how the user can look at the log, in a few words; "" if that needs none."""
        return ""
