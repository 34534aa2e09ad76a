"""What a run reports: console progress, and the log files."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table

from depthany.config.entry import flat
from depthany.display.captions import with_captions
from depthany.display.class_pictures import class_row, palette
from depthany.display.pictures import at_size, comparison_row
from depthany.display.progress import clock, columns, time_in_words
from depthany.metrics.confusion import ABSENT_RULE
from depthany.metrics.table import METRICS, brief
from depthany.training.log_files import DEFAULT_LOGGERS, LogFiles
from depthany.training.loggers.logger import SCORES
from depthany.training.stages.base import StageImages
from depthany.training.validation import CONSTANT_PREDICTIONS, IMAGES, IOU, NEGATIVE_SCALES

PICTURES_PER_KIND = 4
_COLOURS = "red near, blue far, gray unknown"
LEGENDS = {  # of the crops, by what is learned
    "disparity": f"{_COLOURS}\nerror: black 0 to yellow, the range of the target",
    "depth_m": f"{_COLOURS}\nerror: black 0 to yellow 50 % of the depth",
    "classes": "light gray: no class; error: red",
}
COMPARED = (  # settings in the summary of a run, and those that begin so
    *("stage.name", "stage.terms.", "stage.weights.", "model.encoder.name", "model.encoder.size"),
    *("model.head.name", "crop_size", "batch_size", "epochs", "passes", "steps", "optimizer.lr"),
    *("optimizer.name", "optimizer.weight_decay", "schedule.name", "ema.decay", "perturb.cutmix_p", "seed"),
)
WARM_UP, MEASURED = 5, 10  # steps before those that an estimate of the time is from, and their number
WORTH_A_LINE_S = 60.0  # shortest remaining time that is printed
FILE_COLUMNS = 110  # of tables in a file or pipe


class Tracker:
    """Writes scalars and pictures of one run, and shows its progress.

    Args:
        run_dir: folder of the run.
        start_step, validated_step: steps of the checkpoint that the run resumes from, and of its last
            validation (None: the same); later lines are dropped, since they will be written again.
        total_steps: length of the run.
        settings: the resolved configuration as YAML.
        goes_on: whether the run continues if the log cannot be written, as on a full disk; see `LogFiles`.
        loggers: names in `depthany.training.loggers.table.LOGGERS`.
    """

    def __init__(
        self,
        run_dir: Path,
        start_step: int,
        total_steps: int,
        settings: str,
        goes_on: bool = False,
        loggers: Sequence[str] = DEFAULT_LOGGERS,
        validated_step: int | None = None,
    ) -> None:
        self.total_steps = total_steps
        self.console = Console()
        if not self.console.is_terminal and "COLUMNS" not in os.environ:
            self.console = Console(width=FILE_COLUMNS)
        self._files = LogFiles(run_dir, start_step, settings, goes_on, self.say, loggers, validated_step)
        self.how_to_look = self._files.how_to_look()
        self._progress = Progress(
            *columns("loss {task.fields[loss]:.4f} · {task.fields[rate]:.1f} images/s"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task(
            "step", total=total_steps, completed=start_step, loss=float("nan"), rate=0.0
        )
        self._started, self._start_step = time.monotonic(), start_step
        self._measured_from: tuple[int, float] | None = None  # step and time
        self._has_estimated = False
        self._progress.start()

    def progress(self, step: int, loss: float, images_per_second: float) -> None:
        """Moves the bar; prints a line instead where there is no terminal."""
        self._progress.update(self._task, completed=step, loss=loss, rate=images_per_second)
        self._estimate(step)
        if not self.console.is_terminal:
            seconds_a_step = (time.monotonic() - self._started) / max(1, step - self._start_step)
            eta = clock(seconds_a_step * (self.total_steps - step))
            print(
                f"step {step}/{self.total_steps}  loss {loss:.4f}  {images_per_second:.1f} images/s  "
                f"ETA {eta}",
                flush=True,
            )

    def _estimate(self, step: int) -> None:
        """Prints once how long the rest of the run takes, after some steps that are like the others."""
        now = time.monotonic()
        if self._measured_from is None and step >= self._start_step + WARM_UP:
            self._measured_from = step, now
        if self._has_estimated or self._measured_from is None:
            return
        first, began = self._measured_from
        if step >= first + MEASURED and step < self.total_steps:
            self._has_estimated = True
            left_s = (now - began) / (step - first) * (self.total_steps - step)
            if left_s >= WORTH_A_LINE_S:
                left = time_in_words(left_s)
                self.say(f"about {left} to go on this machine, at the rate of steps {first} to {step}")

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the numbers to all loggers."""
        self._files.scalars(step, values)

    def pictures(self, step: int, images: Mapping[str, StageImages]) -> None:
        """Writes rows of image, view, target, prediction and error for each kind of image."""
        for kind, shown in images.items():
            if len(shown.clean):
                self._files.picture(f"crops/{kind}", _sheet(shown), step)

    def picture(self, title: str, picture: np.ndarray, step: int) -> None:
        """Writes a picture [h w 3] uint8 RGB to all loggers."""
        self._files.picture(title, picture, step)

    def summary(self, settings: Mapping[str, Any], scores: Mapping[str, Mapping[str, float]]) -> None:
        """Writes what compares this run with others: settings in `COMPARED`, and its scores[set][metric]."""
        known = {key: value for key, value in flat(settings).items() if key.startswith(COMPARED)}
        shown = {
            key: value if isinstance(value, bool | int | float) else str(value)
            for key, value in known.items()
            if value is not None
        }
        final = {
            f"{SCORES}{name}/{metric}": value
            for name, found in scores.items()
            for metric, value in found.items()
            if metric in METRICS
        }
        self._files.summary(shown, final)

    def table(self, title: str, rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
        """Prints the scores rows[model][set][metric], one row for each model and set."""
        of_first_model = next(iter(rows.values()))
        names = dict.fromkeys(name for scores in of_first_model.values() for name in scores)
        metrics = brief(name for name in names if name in METRICS)
        # On a narrow console a long name goes on in the next line: cut off, two sets would look the same.
        table = Table(Column("set", overflow="fold"), Column("model", overflow="fold"), title=title)
        has_scales = any(NEGATIVE_SCALES in scores for scores in of_first_model.values())  # classes have none
        counts = {"negative scales": NEGATIVE_SCALES} if has_scales else {}
        if any(scores.get(CONSTANT_PREDICTIONS) for sets in rows.values() for scores in sets.values()):
            counts["constant"] = CONSTANT_PREDICTIONS
        for heading in (*(METRICS[name].heading for name in metrics), *counts):
            table.add_column(heading, justify="right")
        for name in of_first_model:
            for model, scores in rows.items():
                found = scores[name]  # without a metric that is not defined for any image of the set
                cells = [f"{found[metric]:.4f}" if metric in found else "" for metric in metrics]
                cells += [
                    f"{scores[name][count]:.0f} of {scores[name][IMAGES]:.0f}" for count in counts.values()
                ]
                table.add_row(name if model == next(iter(rows)) else "", model, *cells)
            table.add_section()
        self.console.print(table)

    def classes(self, rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
        """Prints the IoU of each class, a column for each model and set, and the rule of mIoU."""
        columns = {(model, name): found for model, sets in rows.items() for name, found in sets.items()}
        table = Table(Column("class", overflow="fold"), title="IoU of each class")
        for model, name in columns:
            table.add_column(name if len(rows) == 1 else f"{model}, {name}", justify="right", overflow="fold")
        for key in dict.fromkeys(key for found in columns.values() for key in found if key.startswith(IOU)):
            cells = [f"{found[key]:.4f}" if key in found else "absent" for found in columns.values()]
            table.add_row(key.removeprefix(IOU), *cells)
        self.console.print(table)
        self.say(f"mIoU: {ABSENT_RULE}")

    def close(self) -> None:
        """Stops the bar and closes the log files."""
        self._progress.stop()
        self._files.close()


class NullTracker:
    """The tracker of a rank that leaves writing to rank 0: the methods of `Tracker`, without effect."""

    how_to_look = ""

    def progress(self, step: int, loss: float, images_per_second: float) -> None: ...
    def say(self, text: str) -> None: ...
    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...
    def pictures(self, step: int, images: Mapping[str, StageImages]) -> None: ...
    def picture(self, title: str, sheet: np.ndarray, step: int) -> None:
        """Leaves the picture, `sheet` [h w 3] uint8 RGB, to rank 0."""

    def summary(self, settings: Mapping[str, Any], scores: Mapping[str, Mapping[str, float]]) -> None: ...
    def table(self, title: str, rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None: ...
    def classes(self, rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None: ...
    def close(self) -> None: ...


def _sheet(shown: StageImages) -> np.ndarray:
    """Returns the rows of up to PICTURES_PER_KIND images as one picture [H W 3] uint8 RGB, with captions."""
    perturbed = shown.seen is not shown.clean
    columns = ("image", "perturbed view", "pseudo-label") if perturbed else ("image", "target")
    rows = []
    for i in range(min(PICTURES_PER_KIND, len(shown.clean))):
        images = [shown.clean[i], shown.seen[i]] if perturbed else [shown.clean[i]]
        hwc = [image.permute(1, 2, 0).cpu().numpy() for image in images]
        if shown.kind == "classes":
            logits = shown.prediction[i]  # [k h w]
            planes = (shown.target[i], logits.argmax(0), shown.mask[i])
            target, predicted, known = (each.cpu().numpy() for each in planes)
            rows.append(class_row(hwc, target, predicted, known, palette(shown.colours, len(logits))))
            continue
        maps = (shown.target[i].float(), shown.prediction[i].float(), shown.mask[i])
        target, prediction, mask = (at_size(each.cpu().numpy(), hwc[0].shape[:2]) for each in maps)
        rows.append(comparison_row(hwc, target, prediction, mask, in_metres=shown.kind == "depth_m"))
    legend = LEGENDS.get(shown.kind, LEGENDS["disparity"])
    return with_captions(np.concatenate(rows), (*columns, "prediction", "error"), legend)
