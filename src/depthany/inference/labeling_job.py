"""Labels whole data sets into a store: what `depthany.pseudo_label` and a training run have in common."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from depthany.data.pseudo_labels.store import (
    MANIFEST,
    RESIZE,
    UNREADABLE,
    StoreSettings,
    begin_store,
    describe_sets,
    finish_store,
)
from depthany.data.samples import UnlabeledSet
from depthany.display.progress import bar_of_all
from depthany.inference.claims import Claims
from depthany.inference.labeling import Labeler, Reading
from depthany.inference.labeling_counts import LabelingCounts
from depthany.inference.labeling_report import LabelingProgress
from depthany.inference.predictor import Predictor
from depthany.inference.ready_model import ReadyModel
from depthany.system.device import Compute
from depthany.system.distributed import Processes
from depthany.system.files import require_own_results


@dataclass(frozen=True)
class LabelingJob:
    """What is labeled, by which teacher, and how. All processes of a run have the same one.

    out: folder of the store.
    teacher: prepared for inference, with the hash of its weights.
    sets: unlabeled sets by name.
    input_size: pixels of the shorter side as the teacher sees it.
    resolution: full | half, see configs/pseudo_label.yaml.
    shard_size: images of a shard.
    batch_size: images of equal shape that go through the teacher together.
    workers: threads that read, and as many that encode.
    """

    out: Path
    teacher: ReadyModel
    sets: Mapping[str, UnlabeledSet]
    reading: Reading
    compute: Compute
    processes: Processes
    input_size: int
    resolution: str
    shard_size: int
    batch_size: int
    workers: int

    def header(self) -> StoreSettings:
        """Returns everything that the labels depend on."""
        preprocessing = {
            "input_size": self.input_size,
            "resize": RESIZE,
            "resolution": self.resolution,
            "precision": self.compute.precision,
            "batch_size": self.batch_size,
            "convert_images": self.reading.convert_images,
            "min_side": self.reading.min_side,
        }
        about = {"weights_sha256": self.teacher.weights_sha256, "model": self.teacher.model.config}
        return StoreSettings(about, preprocessing, self.shard_size, describe_sets(self.sets))

    def begin(self, remedy: str = "pass another out=...") -> Claims:
        """Begins the store, or checks that it is the same one; returns the shards that are not labeled yet.

        Args:
            remedy: what to do if it is a store of other labels, for the message.

        Raises:
            ValueError: the folder holds other labels, or another program's files, or cannot be written.
        """
        header = self.header()
        if self.processes.is_main:
            with FileLock(self.out / ".lock"):  # workers that start at once would write one partial file
                if not (self.out / MANIFEST).exists():
                    require_own_results(self.out, MANIFEST, "sets", (UNREADABLE, "shards"))
                begin_store(self.out, header, remedy)
        self.processes.wait()
        begin_store(self.out, header, remedy)
        claims = Claims(self.out, header)
        self.processes.wait()  # every process counts the open shards before the first one is done
        return claims

    def run(self, claims: Claims, projects: bool) -> LabelingCounts:
        """Labels the shards that no other worker has, under a progress bar; returns this process's counts.

        Args:
            projects: whether to print now and then the space and time that its images take.

        Raises:
            ValueError: see `Labeler.run`.
        """
        wanted = sum(shard.last - shard.first for shard in claims.open)
        share = -(-wanted // self.processes.size)
        with bar_of_all(self.processes, "images", wanted) as advance:
            progress = LabelingProgress(advance, share, projects and self.processes.is_main)
            counts = self.labeler(progress).run(self.out, claims)
            self.processes.wait_without_timeout("labels")  # for the last shards of the other processes
            advance(0)
        return counts

    def labeler(self, progress: Any) -> Labeler:
        """Returns the labeler; see `Labeler` for `progress`."""
        predictor = Predictor(self.teacher.model, self.input_size, label="the teacher")
        half = self.resolution == "half"
        return Labeler(predictor, self.sets, self.reading, half, self.batch_size, self.workers, progress)

    def finish(self, counts: LabelingCounts) -> tuple[LabelingCounts, dict[str, Any] | None]:
        """Completes the store; all processes call it.

        Returns:
            On process 0 the counts of all processes, and the manifest, None if other workers are still
            labeling. On the others their own counts and None.
        """
        of_all = self.processes.gather(counts.summable())
        if not self.processes.is_main:
            return counts, None
        with FileLock(self.out / ".lock"):
            return counts.total(of_all), finish_store(self.out)
