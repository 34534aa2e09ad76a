"""The pictures of a validation: for the log, and the newest examples for a file of the run."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from depthany.evaluation.example_sheet import stacked
from depthany.system.files import write_atomically
from depthany.training.run_dir import EXAMPLES_FILE
from depthany.training.validation import EXAMPLES

EXAMPLES_PER_SET = 2


class Examples:
    """Passes the pictures of a validation on to the log, and keeps the newest examples of each set."""

    def __init__(self, log: Callable[[str, NDArray[np.uint8]], object]) -> None:
        self._log, self._newest = log, dict[str, NDArray[np.uint8]]()

    def show(self, title: str, picture: NDArray[np.uint8]) -> None:
        """Takes a picture [h w 3] uint8 RGB."""
        if title.startswith(EXAMPLES):
            self._newest[title] = picture
        self._log(title, picture)

    def write(self, run_dir: Path) -> Path | None:
        """Writes the newest examples of all sets as one PNG, and returns its path; None if there are none."""
        if not self._newest:
            return None
        sheet, path = stacked(list(self._newest.values())), run_dir / EXAMPLES_FILE
        write_atomically(path, lambda partial: Image.fromarray(sheet).save(partial, format="PNG"))
        return path
