"""The command `pseudo_label`: labels unlabeled images once for any number of students."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from depthany.checking.label_store import draw_labels, verify_store
from depthany.config.checker import check_settings
from depthany.config.schema import BatchSettings, OfficialFileSettings
from depthany.data.counts import set_notes
from depthany.data.mixture import DataSettings
from depthany.inference.labeling import RESOLUTIONS, Reading
from depthany.inference.labeling_job import LabelingJob
from depthany.inference.labeling_report import print_labels
from depthany.inference.ready_model import ReadyModel, load_ready_model
from depthany.models.files.model_source import ModelSource
from depthany.models.model import DenseModel
from depthany.system.device import Compute, prepare_compute, reading_threads
from depthany.system.distributed import Processes, launched_processes, process_group
from depthany.system.files import require_writable
from depthany.system.plurals import counted
from depthany.system.rules import setting
from depthany.system.sample import require_sample
from depthany.training import build


@dataclass
class PseudoLabelSettings(BatchSettings, OfficialFileSettings):
    """configs/pseudo_label.yaml."""

    teacher: Any = setting()
    data: DataSettings = field(default_factory=DataSettings)
    out: str = setting(filled=True)
    verify: str | None = None
    inspect: str | None = None
    inspect_images: int = setting(least=1)
    input_size: int | None = None  # its bounds depend on the model
    resolution: str = setting(choices=RESOLUTIONS)
    shard_size: int = setting(least=1)

    def __post_init__(self) -> None:
        if self.verify is not None and self.inspect is not None:
            raise ValueError("verify= and inspect= were both given: give only one of them")


def run(cfg: DictConfig) -> int:
    """Labels, verifies or inspects, as the configuration says; returns the exit code."""
    unused = ("data",) if cfg.verify is not None else ("data.labeled", "data.val")
    cfg, processes = check_settings(cfg, PseudoLabelSettings, optional=unused), launched_processes()
    if cfg.verify is None and cfg.inspect is None:
        compute = prepare_compute(cfg.device, cfg.precision, cfg.threads, processes)
        with process_group(processes, compute.device):
            label(cfg, processes, compute)
    elif processes.is_main:
        if cfg.verify is not None:
            return verify_store(Path(cfg.verify))
        draw_labels(Path(cfg.inspect), open_sets(cfg), cfg.inspect_images, cfg.data.convert_images)
    return 0


def label(cfg: DictConfig, processes: Processes, compute: Compute) -> None:
    """Labels every image that has no label yet and that no other worker is labeling."""
    out = Path(cfg.out)
    if processes.is_main:
        require_writable(out)
    require_sample(
        (entry.get("root") for entry in cfg.data.unlabeled.values()),
        "your own images need no sample: data=folder data.unlabeled.mine.root=FOLDER",
    )
    source = ModelSource.of("teacher", cfg.teacher, cfg.taps, cfg.max_depth)
    teacher = load_ready_model(source, compute, hash_weights=True)
    teacher.model.quantity.require("disparity", str(source), "pass a relative model")
    sets = open_sets(cfg)
    size = teacher.model.input_size if cfg.input_size is None else cfg.input_size
    require_crop_size(size, teacher.model)
    reading = Reading(
        cfg.data.convert_images, cfg.data.min_side, cfg.data.unreadable, cfg.data.max_unreadable_share
    )
    threads = reading_threads(cfg.workers, compute.device)
    how = (cfg.resolution, cfg.shard_size, cfg.batch_size, threads)
    job = LabelingJob(out, teacher, sets, reading, compute, processes, size, *how)
    claims = job.begin()
    images = sum(len(each) for each in sets.values())
    wanted = sum(shard.last - shard.first for shard in claims.open)
    if processes.is_main:
        shared = f", {processes.size} processes" if processes.size > 1 else ""
        print(f"{describe(teacher, size, images, images - wanted, compute)}{shared}", flush=True)
        for line in set_notes({f"data.unlabeled.{name}": each for name, each in sets.items()}):
            print(line, flush=True)
    counts, manifest = job.finish(job.run(claims, projects=True))
    if processes.is_main:
        print_labels(out, counts, manifest)


def require_crop_size(size: int, teacher: DenseModel) -> None:
    """Raises ValueError if no student can train on crops of the labels' size."""
    teacher.preprocessing.require_input_size(size)
    if (used := teacher.preprocessing.shorter_side(size)) != size:
        raise ValueError(
            f"input_size={size} is not a multiple of {teacher.preprocessing.multiple}, as the crop_size of "
            f"students that learn from these labels must be: try {used}"
        )


def open_sets(cfg: DictConfig) -> dict[str, Any]:
    """Returns the unlabeled sets that have a root, by name."""
    sets = build.build_sets(cfg.data.unlabeled, "data.unlabeled")
    if not sets:
        keys = " ".join(f"data.unlabeled.{name}.root=..." for name in cfg.data.unlabeled)
        raise ValueError(f"no unlabeled set has a root: set one of {keys or 'another data=...'}")
    return sets


def describe(teacher: ReadyModel, size: int, images: int, done: int, compute: Compute) -> str:
    """Returns one line on what the command is going to do."""
    before = f" ({done} of them are in finished shards)" if done else ""
    return (
        f"{teacher.model.encoder.label} labels {counted(images, 'image')}{before} at input_size={size}, "
        f"{compute.describe()}"
    )
