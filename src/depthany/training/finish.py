"""The end of a run: its files, its table, and what comes next."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from depthany.data.left_out import summary
from depthany.models.model import WEIGHTS_NAME, DenseModel, save_model
from depthany.system.files import write_atomically
from depthany.training import run_dir as runs
from depthany.training.examples import Examples
from depthany.training.loop import SetScores
from depthany.training.tracking import NullTracker, Tracker
from depthany.training.validation import is_dead


def finish(
    run_dir: Path,
    model: DenseModel,
    about: dict[str, Any],
    scores: dict[str, SetScores],
    saved: dict[str, Any],
    faults: Sequence[str],
    tracker: Tracker | NullTracker,
    pictures: Examples,
    next_command: str,
) -> None:
    """Writes results and model, the model last since it marks the run as finished, and prints the table.

    Args:
        faults: lines on what was wrong as training ended.
        next_command: the command that a user runs next with such a model.
    """
    # config.json would no longer describe the model of a shorter run
    (run_dir / WEIGHTS_NAME).unlink(missing_ok=True)
    results = json.dumps({**about, "scores": scores}, indent=2) + "\n"
    try:
        shown = pictures.write(run_dir / runs.EXAMPLES_FILE)
        write_atomically(run_dir / runs.RESULTS_FILE, lambda path: path.write_text(results))
        save_model(model, run_dir, extra={"training": {**about, "settings": saved}})
    except ValueError as error:
        raise ValueError(
            f"{error}; the run is not finished: make room, then the same command continues"
        ) from error
    if next(iter(scores.values())):
        fitted = model.quantity.kind == "disparity"
        how = "fitted to 1/depth by scale and shift per image" if fitted else model.quantity.describe()
        weights = f"weights {about['weights']}, " if "weights" in about else ""
        tracker.table(f"validation: {weights}{how}", scores)
        if model.quantity.kind == "classes":
            tracker.classes(scores)
    for name, sets in scores.items():
        if dead := [each for each, values in sets.items() if is_dead(values)]:
            which = ", ".join(dead)
            tracker.say(f"warning: dead model: {name} predicts a constant for every image of {which}")
    for fault in faults:
        tracker.say(f"warning: as training ended: {fault}")
    if line := summary(run_dir / runs.UNREADABLE_FILE):
        tracker.say(line)
    places = {"model": run_dir / WEIGHTS_NAME, "look at": shown, "curves": tracker.how_to_look}
    tracker.say("    ".join(f"{what}: {place}" for what, place in places.items() if place))
    if pictures.lacks_sets:
        tracker.say(f"no {runs.EXAMPLES_FILE}, since no validation set is given: name one in data.val")
    tracker.say(f"next: {next_command}")
