"""The pictures of a validation: for the log, and the newest examples for a file of the run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from depthany.display.captions import with_captions
from depthany.display.class_pictures import confusion_picture
from depthany.evaluation.class_scores import confusion_of
from depthany.evaluation.example_sheet import examples_of, stacked
from depthany.evaluation.predictors import ScoredPredictor
from depthany.evaluation.protocol import Protocol
from depthany.evaluation.run import Scored
from depthany.system.files import write_atomically

CONFUSION_LEGEND = "true classes down, predicted across; numbers: % of the true class"


class Examples:
    """Draws images of each validation set and the confusion matrix of classes, and keeps the newest images.

    Args:
        log: takes a title and a picture [h w 3] uint8 RGB.
        per_set: images of each set, always the same ones; 0 = none.
    """

    def __init__(self, log: Callable[[str, NDArray[np.uint8]], object], per_set: int = 2) -> None:
        self._log, self._per_set = log, per_set
        self._newest = dict[str, NDArray[np.uint8]]()

    def draw(self, scored: Scored, predictor: ScoredPredictor, dataset: Any, protocol: Protocol) -> None:
        """Draws the pictures of a set that was scored, if any of its images counted."""
        if not scored.rows:
            return
        if self._per_set:
            sheet = examples_of(scored.rows, self._per_set, predictor, dataset, protocol)
            self._newest[protocol.name] = sheet
            self._log(f"examples/{protocol.name}", sheet)
        if protocol.task == "classes":
            names = tuple(dataset.classes.names)
            matrix = confusion_picture(confusion_of(scored.rows, len(names)), names)
            captioned = with_captions(matrix, ["confusion of pixels"], CONFUSION_LEGEND)
            self._log(f"confusion/{protocol.name}", captioned)

    @property
    def lacks_sets(self) -> bool:
        """Whether examples were wanted, and no set was scored."""
        return self._per_set > 0 and not self._newest

    def write(self, path: Path) -> Path | None:
        """Writes the newest examples of all sets as one PNG, and returns its path.

        Without any it returns None, and deletes a file of an earlier, shorter run.
        """
        if not self._newest:
            path.unlink(missing_ok=True)
            return None
        sheet = stacked(list(self._newest.values()))
        write_atomically(path, lambda partial: Image.fromarray(sheet).save(partial, format="PNG"))
        return path
