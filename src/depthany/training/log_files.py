"""Writes the log of a run to its loggers, on a disk that may become full."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from depthany.system.files import why
from depthany.training.loggers.logger import Logger, LogPlace, Setting
from depthany.training.loggers.table import LOGGERS

DEFAULT_LOGGERS = ("jsonl", "tensorboard")


class LogFiles:
    """The numbers and pictures of a run, in all of its loggers.

    Args:
        run_dir, start_step, settings, validated_step: see `LogPlace`.
        goes_on: a write that fails loses its line, which is reported once and counted; else it raises.
        tell: receives a line for the user.
        loggers: names in `LOGGERS`.

    Raises:
        ValueError: a logger cannot begin or write; after the start only if `goes_on` is not set.
    """

    def __init__(
        self,
        run_dir: Path,
        start_step: int,
        settings: str,
        goes_on: bool,
        tell: Callable[[str], None],
        loggers: Sequence[str] = DEFAULT_LOGGERS,
        validated_step: int | None = None,
    ) -> None:
        self._run_dir, self._tell, self._goes_on = run_dir, tell, False
        self._loggers, place = list[Logger](), LogPlace(run_dir, start_step, settings, validated_step)
        self.lost = {LOGGERS[name].title: 0 for name in loggers}  # lines and pictures
        try:
            for name in dict.fromkeys(loggers):
                self._try(None, partial(self._open, LOGGERS[name], place))
        except BaseException:
            self.close()
            raise
        self._goes_on = goes_on  # what has begun goes on; nothing begins on a full disk

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the numbers to each."""
        for logger in self._loggers:
            self._try(logger, partial(logger.scalars, step, values))

    def picture(self, title: str, sheet: np.ndarray, step: int) -> None:
        """Writes a picture, `sheet` [h w 3] uint8 RGB, to those that show pictures."""
        for logger in self._loggers:
            self._try(logger, partial(logger.picture, title, sheet, step))

    def summary(self, settings: Mapping[str, Setting], scores: Mapping[str, float]) -> None:
        """Writes a few settings and the final scores, which compare runs, to those that show them."""
        for logger in self._loggers:
            self._try(logger, partial(logger.summary, settings, scores))

    def how_to_look(self) -> str:
        """Returns how the user can look at the log; "" if that needs no words."""
        return "    ".join(filter(None, (logger.how_to_look() for logger in self._loggers)))

    def close(self) -> None:
        """Closes all, and reports how many lines were lost; what cannot be closed is reported, too."""
        open_ones, self._loggers = self._loggers, []
        for logger in open_ones:
            try:
                logger.close()
            except OSError as error:
                self._tell(f"warning: cannot close the log in {self._run_dir}: {why(error)}")
        if open_ones and any(self.lost.values()):
            lost = ", ".join(f"{count} of {title}" for title, count in self.lost.items())
            self._tell(f"warning: lines lost from the log in {self._run_dir}: {lost}")

    def _open(self, logger: type[Logger], place: LogPlace) -> None:
        self._loggers.append(logger(place))

    def _try(self, logger: Logger | None, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            if logger is not None:
                logger.recover()
            failure = f"cannot write the log in {self._run_dir}: {why(error)}"
            if not self._goes_on or logger is None:
                raise ValueError(
                    f"{failure}; the last checkpoint is whole: make room, then the same command continues"
                ) from error
            if not any(self.lost.values()):
                self._tell(
                    f"warning: {failure}; training goes on, and lines of the log are lost from here on"
                )
            self.lost[logger.title] += 1
