"""Writes metrics.jsonl and TensorBoard's events of a run, on a disk that may become full."""

import json
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from depthany.system.files import why, write_atomically

METRICS_FILE = "metrics.jsonl"
BOARD = "TensorBoard"
EVENTS = "events.out.tfevents.*"
SCORES = "val/"  # the names of scores begin so


class LogFiles:
    """The numbers and pictures of a run, in metrics.jsonl and TensorBoard.

    Args:
        run_dir: where both go.
        start_step, validated_step: steps of the checkpoint that the run resumes from, and of its last
            validation (default: the same); later lines are dropped, since they will be written again.
        settings: the resolved configuration as YAML, shown in TensorBoard as text.
        goes_on: a write that fails loses its line, which is reported once and counted; else it raises.
        tell: receives a line for the user.

    Raises:
        ValueError: a file cannot be written; after the start only if `goes_on` is not set.
    """

    def __init__(
        self,
        run_dir: Path,
        start_step: int,
        settings: str,
        goes_on: bool,
        tell: Callable[[str], None],
        validated_step: int | None = None,
    ) -> None:
        self.lost = {METRICS_FILE: 0, BOARD: 0}  # lines; lines and pictures
        self._run_dir, self._tell, self._goes_on = run_dir, tell, False
        self._path = run_dir / METRICS_FILE
        _drop_after(self._path, start_step, start_step if validated_step is None else validated_step)
        self._metrics = open(self._path, "ab", buffering=0)  # noqa: SIM115  open as long as the run
        self._hook = threading.excepthook
        threading.excepthook = self._without_tensorboard
        self._events: SummaryWriter | None = None
        try:
            self._try(BOARD, lambda: self._begin(start_step, settings))
        except BaseException:
            self.close()
            raise
        self._goes_on = goes_on  # what has begun goes on; nothing begins on a full disk

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the numbers to both."""
        line = json.dumps({"step": step, **values}) + "\n"

        def draw() -> None:
            events = self._opened()
            for name, value in values.items():
                events.add_scalar(name, value, step)
            events.flush()

        self._try(METRICS_FILE, lambda: self._append(line.encode()))
        self._try(BOARD, draw)

    def picture(self, title: str, sheet: np.ndarray, step: int) -> None:
        """Writes a picture [h w 3] uint8 RGB to TensorBoard."""

        def draw() -> None:
            events = self._opened()
            events.add_image(title, sheet, step, dataformats="HWC")
            events.flush()

        self._try(BOARD, draw)

    def close(self) -> None:
        """Closes both, and reports how many lines were lost."""
        if self._metrics.closed:
            return
        self._metrics.close()
        self._drop_events()
        threading.excepthook = self._hook
        if any(self.lost.values()):
            lost = ", ".join(f"{count} of {name}" for name, count in self.lost.items())
            self._tell(f"warning: lines of the log in {self._run_dir} that are lost: {lost}")

    def _try(self, name: str, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if name == BOARD:
                self._drop_events()  # its thread has ended; with room again, another file is begun
            failure = f"cannot write the log in {self._run_dir}: {why(error)}"
            if not self._goes_on:
                raise ValueError(
                    f"{failure}; the last checkpoint is whole: make room, and the same command continues"
                ) from error
            if not any(self.lost.values()):
                self._tell(
                    f"warning: {failure}; training goes on, and lines of the log are lost from here on"
                )
            self.lost[name] += 1

    def _append(self, line: bytes) -> None:
        """Appends the whole line or nothing of it."""
        end, left = self._path.stat().st_size, line
        try:
            while left:
                left = left[self._metrics.write(left) :]
        except OSError:
            self._metrics.truncate(end)
            raise

    def _begin(self, start_step: int, settings: str) -> None:
        self._events = SummaryWriter(str(self._run_dir), purge_step=start_step + 1)
        self._events.add_text("settings", f"```yaml\n{settings}\n```", start_step)
        self._events.flush()

    def _opened(self) -> SummaryWriter:
        if self._events is None:
            self._events = SummaryWriter(str(self._run_dir))
        return self._events

    def _drop_events(self) -> None:
        if self._events is not None:
            with suppress(OSError):  # every write was flushed: it has raised already what this repeats
                self._events.close()
            self._events = None
        for path in self._run_dir.glob(EVENTS):
            if path.stat().st_size == 0:  # begun while the disk was full
                path.unlink()

    def _without_tensorboard(self, failed: threading.ExceptHookArgs) -> None:
        """Prints no traceback of TensorBoard's thread: its next call raises the same error."""
        if not type(failed.thread).__module__.startswith("tensorboard."):
            self._hook(failed)


def _drop_after(path: Path, step: int, validated_step: int) -> None:
    """Drops the lines of metrics.jsonl after `step`, the scores after `validated_step`, and a cut line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            values = json.loads(line)
            is_score = any(name.startswith(SCORES) for name in values)
            if values["step"] <= (min(step, validated_step) if is_score else step):
                kept.append(line + "\n")
        except json.JSONDecodeError:
            break
    write_atomically(path, lambda partial: partial.write_text("".join(kept)))
