"""metrics.jsonl: a line of JSON for each step that is logged."""

import json
from collections.abc import Mapping
from pathlib import Path

from depthany.system.files import write_atomically
from depthany.training.loggers.logger import SCORES, Logger, LogPlace

METRICS_FILE = "metrics.jsonl"


class JsonlLogger(Logger):
    """Appends lines to metrics.jsonl; a resumed run first drops those that it will write again."""

    title, written = METRICS_FILE, (METRICS_FILE,)

    def __init__(self, place: LogPlace) -> None:
        super().__init__(place)
        self._path = place.run_dir / METRICS_FILE
        validated = place.start_step if place.validated_step is None else place.validated_step
        _drop_after(self._path, place.start_step, validated)
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
