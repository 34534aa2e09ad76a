"""metrics.jsonl: a line of JSON for each step that is logged."""

import json
from collections.abc import Mapping
from pathlib import Path

from depthany.system.files import write_atomically
from depthany.training.loggers.logger import Logger, LogPlace

METRICS_FILE = "metrics.jsonl"


class JsonlLogger(Logger):
    """Appends lines to metrics.jsonl; a resumed run first drops those that it will write again."""

    title, written = METRICS_FILE, (METRICS_FILE,)

    def __init__(self, place: LogPlace) -> None:
        super().__init__(place)
        self._path = place.run_dir / METRICS_FILE
        _drop_after(self._path, place.start_step)
        self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115  open as long as the run

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Appends the whole line or nothing of it."""
        left = (json.dumps({"step": step, **values}) + "\n").encode()
        end = self._path.stat().st_size
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            self._file.truncate(end)
            raise

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _drop_after(path: Path, step: int) -> None:
    """Drops the lines of metrics.jsonl after `step`, and a line cut short by a kill."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:
            break
    write_atomically(path, lambda partial: partial.write_text("".join(kept)))
