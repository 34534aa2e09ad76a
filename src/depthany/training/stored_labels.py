"""Labels that a student reads instead of asking its teacher: from a store, or from one that its run makes."""

import shutil
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from depthany.data.dataset import TrainingSet
from depthany.data.pseudo_labels.codec import BYTES_PER_PIXEL
from depthany.data.pseudo_labels.store import (
    MANIFEST,
    RESIZE,
    PseudoLabels,
    ShardRange,
    describe_sets,
    differences,
    read_manifest,
)
from depthany.data.samples import UnlabeledSet
from depthany.data.transforms import crop_shape
from depthany.inference.claims import missing_shards
from depthany.inference.labeling import Reading, ShardPosition
from depthany.inference.labeling_job import LabelingJob
from depthany.inference.labeling_report import size_of, summary_of_labels
from depthany.inference.pipeline import Skipped
from depthany.inference.ready_model import ReadyModel
from depthany.models.fast import prepare_for_inference
from depthany.models.files.weights import weights_sha256
from depthany.models.model import DenseModel
from depthany.system.device import Compute, reading_threads
from depthany.system.distributed import Processes
from depthany.system.plurals import counted
from depthany.system.signals import SLURM_SIGNALS, sigterm_raises
from depthany.training.checks import rooted
from depthany.training.run_dir import label_dir
from depthany.training.settings import ONCE, ONLINE, TrainSettings

_BATCH = 8  # images of equal shape that go through the teacher together, as configs/pseudo_label.yaml has it
_SHARD = 500  # images of a shard at most, the same
_SHARDS, _LEAST_SHARD = 32, 4  # shards of a small set at least: processes share it, and a kill loses little
_MEASURED = 32  # images whose sizes are read for the estimate
_ANEW = "overwrite=true makes the labels again, or pass another run_dir"


def open_pseudo_labels(
    settings: TrainSettings, teacher: DenseModel, unlabeled: Mapping[str, UnlabeledSet]
) -> PseudoLabels | None:
    """Opens the store that `pseudo_labels` names; returns None where the teacher labels during training.

    That of `pseudo_labels=once` is made later, see `label_once`.

    Raises:
        ValueError: the store is not complete, or of another teacher, input size or image set; each difference
            is named.
    """
    if settings.pseudo_labels == ONLINE:
        return None
    if settings.pseudo_labels == ONCE:
        return PseudoLabels(label_dir(Path(settings.run_dir)), list(unlabeled))
    store = Path(settings.pseudo_labels)
    if not store.exists():
        raise ValueError(
            f"pseudo_labels={store}: no such folder (looked from {Path.cwd()}); choose {ONLINE}, {ONCE}, or "
            "the folder of a store made by python -m depthany.pseudo_label"
        )
    remedy = "label again with python -m depthany.pseudo_label, or pass the matching store, or "
    manifest = _require_fit(store, settings, teacher, unlabeled, f"{remedy}pseudo_labels=online")
    if not manifest["complete"]:
        raise ValueError(
            f"pseudo_labels={store} is not complete: finish it first, by the command that began it "
            "(python -m depthany.pseudo_label ...)"
        )
    return PseudoLabels(store, list(unlabeled))


def label_once(
    settings: TrainSettings,
    dataset: TrainingSet,
    teacher: DenseModel | None,
    compute: Compute,
    processes: Processes,
) -> list[str]:
    """Labels all unlabeled images of the training set in the run directory, unless this is done.

    Does nothing unless `pseudo_labels=once` and the stage has a teacher.

    The teacher sees each image whole, and only once, at the size at which crops are taken from it. All ranks
    call this together and share the work. A start after a kill goes on with the shards that are missing.

    Returns:
        Lines on the labels for the log.

    Raises:
        ValueError: there are labels of another teacher, input size or image set, or the disk has too little
            room; and whatever `Labeler.run` raises.
    """
    if settings.pseudo_labels != ONCE or teacher is None:
        return []
    store = label_dir(Path(settings.run_dir))
    unlabeled = dict(zip(rooted(settings.data.unlabeled), dataset.unlabeled))
    if processes.on_main(lambda: _is_complete(store)):
        manifest = _require_fit(store, settings, teacher, unlabeled, _ANEW)
        return [f"{store}: {manifest['labels']} labels that were made before"]
    job = labeling_job(settings, teacher, unlabeled, compute, processes)
    claims = job.begin(_ANEW)
    images = sum(shard.last - shard.first for shard in claims.open)
    processes.on_main(lambda: print(announcement(job, claims.open, images), flush=True))
    with sigterm_raises(*SLURM_SIGNALS):  # the job is put back into the queue where the run ends by them
        counts, made = job.finish(job.run(claims, projects=False))
    return [processes.on_main(lambda: summary_of_labels(store, counts, made))]


def labeling_job(
    settings: TrainSettings,
    teacher: DenseModel,
    unlabeled: Mapping[str, UnlabeledSet],
    compute: Compute,
    processes: Processes,
) -> LabelingJob:
    """Returns how a run labels its unlabeled images: at the size of its crops, in full resolution."""
    data = settings.data
    copy = deepcopy(teacher).to(compute.device)  # the teacher itself is scored after training
    ready = ReadyModel(prepare_for_inference(copy, compute.dtype), weights_sha256(teacher))
    reading = Reading(data.convert_images, data.min_side, data.unreadable, data.max_unreadable_share)
    images = sum(len(each) for each in unlabeled.values())
    on_gpu = compute.device.type != "cpu"
    return LabelingJob(
        label_dir(Path(settings.run_dir)),
        ready,
        unlabeled,
        reading,
        compute,
        processes,
        input_size=min(crop_shape(settings.crop_size)),
        resolution="full",
        shard_size=min(_SHARD, max(_LEAST_SHARD, images // _SHARDS)),
        batch_size=_BATCH,
        workers=max(settings.workers, reading_threads(None if on_gpu else 1, compute.device)),
    )


def announcement(job: LabelingJob, shards: list[ShardRange], images: int) -> str:
    """Returns the line before labeling: what is labeled, how much disk it takes, and how much is free.

    Raises:
        ValueError: the room is not enough.
    """
    of_label, free = label_bytes(job, shards), shutil.disk_usage(job.out).free
    need = of_label * images
    size = f"about {size_of(need)} ({size_of(of_label)} each)"
    if need > free:
        raise ValueError(
            f"pseudo_labels={ONCE} needs {size} for {images} labels in {job.out}, but {size_of(free)} are "
            "free: make room, or pass pseudo_labels=online or a run_dir on another disk, or label in half "
            "resolution with python -m depthany.pseudo_label and pass its store"
        )
    shared = f", {job.processes.size} processes" if job.processes.size > 1 else ""
    return (
        f"{job.teacher.model.encoder.label} labels {counted(images, 'image')} once at "
        f"input_size={job.input_size}, {job.compute.describe()}{shared}: {size} in {job.out}, "
        f"{size_of(free)} free"
    )


def label_bytes(job: LabelingJob, shards: list[ShardRange]) -> float:
    """Returns the mean size of a label on disk, estimated from the sizes of some images of the shards."""
    positions = [ShardPosition(shard, index) for shard in shards for index in (shard.first, shard.last - 1)]
    chosen = np.linspace(0, len(positions) - 1, min(_MEASURED, len(positions))).astype(int)
    labeler = job.labeler(lambda *_: None)
    images = [labeler.read(positions[k]) for k in chosen]
    pixels = [image.inputs[0][0].numel() for image in images if not isinstance(image, Skipped)]
    return BYTES_PER_PIXEL * float(np.mean(pixels or [job.input_size**2]))


def _is_complete(store: Path) -> bool:
    """Whether there is a store with all its labels; a shard that was deleted is labeled again."""
    if not (store / MANIFEST).exists():
        return False
    header, manifest = read_manifest(store)
    return bool(manifest["complete"]) and not missing_shards(store, header)


def _require_fit(
    store: Path,
    settings: TrainSettings,
    teacher: DenseModel,
    unlabeled: Mapping[str, UnlabeledSet],
    remedy: str,
) -> dict[str, Any]:
    """Returns the manifest of a store. Raises a ValueError if a run with these settings cannot use it."""
    header, manifest = read_manifest(store)
    sets = describe_sets(unlabeled)
    expected: dict[str, dict[str, Any]] = {
        "teacher": {"weights_sha256": weights_sha256(teacher)},
        "preprocessing": {"input_size": min(crop_shape(settings.crop_size)), "resize": RESIZE},
        "sets": sets,
    }
    found = {
        "teacher": {"weights_sha256": header.teacher["weights_sha256"]},
        "preprocessing": {key: header.preprocessing.get(key) for key in expected["preprocessing"]},
        "sets": {name: header.sets.get(name) for name in sets},
    }
    if changed := differences(found, expected, "the store has", "the run"):
        raise ValueError(f"pseudo_labels={store} does not fit the run ({'; '.join(changed)}): {remedy}")
    return manifest
