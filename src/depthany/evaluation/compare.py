"""Scores several predictors under several protocols, and writes files and tables of the results."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from depthany.display.progress import bar_of_all
from depthany.evaluation.console import print_results
from depthany.evaluation.html import Report
from depthany.evaluation.per_image import write_per_image
from depthany.evaluation.predictors import ScoredPredictor
from depthany.evaluation.protocol_files import Chosen
from depthany.evaluation.results import ProtocolResult, write_results
from depthany.evaluation.run import Scored, UnreadableImage, score_set
from depthany.system.distributed import ALONE, Processes


@dataclass
class Comparison:
    """Predictors under protocols. All processes score; process 0 writes and prints.

    Attributes:
        predictors: predictors to compare, with different labels.
        chosen, sets: protocols, and the opened data set of each.
        out: folder of the files.
        about: what results.json says of the whole run besides the results.
        batch_size, workers, skip_unreadable: see `score_set`.
        limit: number of images to score per set, evenly spaced; None scores all.
        pictures: number of best, of median and of worst images in report.html; 0 writes no report.
        zooms: places with strong true edges that are enlarged below each of them.
        results: results of the protocols that are done.
    """

    predictors: Sequence[ScoredPredictor]
    chosen: Sequence[Chosen]
    sets: Sequence[Any]
    out: Path
    about: dict[str, Any]
    batch_size: int
    workers: int
    limit: int | None = None
    skip_unreadable: bool = False
    pictures: int = 0
    zooms: int = 0
    processes: Processes = ALONE
    results: list[ProtocolResult] = field(default_factory=list)

    def run(self) -> None:
        """Runs one protocol after the other. However it ends, the finished ones are written and printed.

        Raises:
            ValueError: an image cannot be read and must not be skipped, or a protocol has no score.
        """
        report = Report(self.pictures, self.zooms)
        self.about["complete"] = False
        try:
            for one, dataset in zip(self.chosen, self.sets, strict=True):
                result = self._score(one, dataset)
                if not any(scored.rows for scored in result.scored.values()):
                    raise ValueError("\n".join(_nothing_scored(result)))
                if not self.processes.is_main:
                    continue
                self.results.append(result)
                if self.pictures:
                    report.add(result, self.predictors, dataset)
                write_results(self.out, self.about, self.results)
            self.about["complete"] = True
        except KeyboardInterrupt:
            if self.processes.is_main:
                done = f"{len(self.results)} of {len(self.chosen)} protocols are done"
                print(f"\ninterrupted; {done}", flush=True)
            raise
        finally:
            if self.results:
                self._write_all(report)

    def _score(self, one: Chosen, dataset: Any) -> ProtocolResult:
        """Scores every predictor under one protocol."""
        asked = len(dataset) if self.limit is None else min(self.limit, len(dataset))
        indices = [k * len(dataset) // asked for k in range(asked)]
        names = tuple(dataset.classes.names) if one.protocol.task == "classes" else ()
        result = ProtocolResult(
            one.protocol, one.dataset, one.changed, len(dataset), asked, class_names=names
        )
        for predictor in self.predictors:
            with bar_of_all(self.processes, f"{one.protocol.name}, {predictor.label}", asked) as advance:
                result.scored[predictor.label] = self._score_one(predictor, one, dataset, indices, advance)
                advance(0)  # shows what the other processes have done since
        return result

    def _score_one(
        self,
        predictor: ScoredPredictor,
        one: Chosen,
        dataset: Any,
        indices: Sequence[int],
        tick: Callable[[], object],
    ) -> Scored:
        """Scores one predictor under one protocol."""
        try:
            return score_set(
                predictor,
                dataset,
                one.protocol,
                indices,
                self.batch_size,
                self.workers,
                convert_images=True,
                skip_unreadable=self.skip_unreadable,
                tick=tick,
                processes=self.processes,
            )
        except UnreadableImage as error:
            raise ValueError(f"{error} (skip_unreadable=true leaves such images out, counted)") from None

    def _write_all(self, report: Report) -> None:
        """Writes every file and prints the tables."""
        write_results(self.out, self.about, self.results)
        write_per_image(self.out, self.results)
        if self.pictures:
            report.write(self.out, self.about)
        print_results(self.results)
        names = "results.json, per_image.csv" + (", report.html" if self.pictures else "")
        print(f"{self.out}: {names}", flush=True)


def _nothing_scored(result: ProtocolResult) -> list[str]:
    """Returns the lines that say why no predictor has a score."""
    head = f"protocol {result.protocol.name}: none of {result.asked} images could be scored"
    return [head, *(f"{label}: {note}" for label in result.scored for note in result.notes(label))]
