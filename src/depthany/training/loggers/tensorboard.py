"""TensorBoard's events of a run, on a disk that may become full."""

import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from depthany.training.loggers.logger import Logger, LogPlace, Setting

EVENTS = "events.out.tfevents.*"


class TensorBoardLogger(Logger):
    """Writes events files; TensorBoard drops the events that a resumed run writes again."""

    title, written = "TensorBoard", (EVENTS,)

    def __init__(self, place: LogPlace) -> None:
        super().__init__(place)
        self._events: Any = None
        self._hook = threading.excepthook
        threading.excepthook = self._without_tensorboard
        try:
            self._events = _summary_writer(str(place.run_dir), purge_step=place.start_step + 1)
            self._events.add_text("settings", f"```yaml\n{place.settings}\n```", place.start_step)
            self._events.flush()
        except BaseException:
            self.close()
            raise

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes each number as a curve of its name."""
        events = self._opened()
        for name, value in values.items():
            events.add_scalar(name, value, step)
        events.flush()

    def picture(self, title: str, sheet: np.ndarray, step: int) -> None:
        """Writes a picture, `sheet` [h w 3] uint8 RGB."""
        events = self._opened()
        events.add_image(title, sheet, step, dataformats="HWC")
        events.flush()

    def summary(self, settings: Mapping[str, Setting], scores: Mapping[str, float]) -> None:
        """Fills the tab HPARAMS, which reads the scores from their curves, in the file of the run itself."""
        from torch.utils.tensorboard.summary import hparams

        events = self._opened()
        for part in hparams(dict(settings), dict(scores)):
            events.file_writer.add_summary(part)
        events.flush()

    def recover(self) -> None:
        """Ends the file whose thread has ended; with room again, another one is begun."""
        if self._events is not None:
            with suppress(OSError):  # every write was flushed: it has raised already what this repeats
                self._events.close()
            self._events = None
        for path in self.place.run_dir.glob(EVENTS):
            if path.stat().st_size == 0:  # begun while the disk was full
                path.unlink()

    def close(self) -> None:
        """Closes the file."""
        self.recover()
        threading.excepthook = self._hook

    def how_to_look(self) -> str:
        """Returns the command that shows all runs beside this one."""
        return f"tensorboard --logdir {self.place.run_dir.parent}"

    def _opened(self) -> Any:
        if self._events is None:
            self._events = _summary_writer(str(self.place.run_dir))
        return self._events

    def _without_tensorboard(self, failed: threading.ExceptHookArgs) -> None:
        """Prints no traceback of TensorBoard's thread: its next call raises the same error."""
        if not type(failed.thread).__module__.startswith("tensorboard."):
            self._hook(failed)


def _summary_writer(*args: Any, **kwargs: Any) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # a second, which runs without it do not spend

    return SummaryWriter(*args, **kwargs)
