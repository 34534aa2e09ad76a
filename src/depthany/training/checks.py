"""Checks how the settings of a training run go together; their bounds stand in `training.settings`."""

from pathlib import Path

from omegaconf import DictConfig

from depthany.config.checker import check_settings
from depthany.models.dinov2 import PATCH
from depthany.system.distributed import Processes
from depthany.training.parallel import shards_weights
from depthany.training.settings import STAGES, TrainSettings

ONLINE = "online"  # the teacher labels each view while the student trains


def check(cfg: DictConfig) -> DictConfig:
    """Returns the configuration with the types and defaults of its dataclasses.

    Raises:
        ValueError: a setting is unknown, or its value is missing, not allowed, or does not go with another.
        omegaconf.ValidationError: a value has the wrong type.
    """
    if cfg.stage.name not in STAGES:
        raise ValueError(f"unknown stage.name {cfg.stage.name!r}; choose from {', '.join(STAGES)}")
    if cfg.stage.name == "teacher" and len(cfg.stage) > 1:
        others = ", ".join(f"stage.{key}" for key in cfg.stage if key != "name")
        raise ValueError(
            f"{others}: of the student alone, perhaps from an experiment; choose stage=student, or leave it"
        )
    if cfg.stage.name == "teacher" and cfg.pseudo_labels != ONLINE:
        raise ValueError(
            f"pseudo_labels={cfg.pseudo_labels}: of the student alone; leave it for stage=teacher"
        )
    is_student = cfg.stage.name == "student"
    unused = () if is_student else ("data.unlabeled",)
    cfg = check_settings(cfg, TrainSettings, optional=unused, stage=STAGES[cfg.stage.name])
    if cfg.crop_size % PATCH:
        nearest = max(1, round(cfg.crop_size / PATCH)) * PATCH
        raise ValueError(f"crop_size={cfg.crop_size} is not a multiple of {PATCH}: try {nearest}")
    for kind, wanted in zip(("labeled", "unlabeled"), per_micro_batch(cfg)):
        _require_a_root(cfg, kind, wanted)
    if is_student and cfg.stage.feature_alignment.weights and not cfg.stage.feature_alignment.encoder:
        raise ValueError(
            "stage.feature_alignment.weights is of another frozen encoder: name its size in "
            "stage.feature_alignment.encoder, or leave both for the student's own start"
        )
    if is_student and not Path(cfg.stage.teacher).exists():
        raise ValueError(
            f"no teacher at stage.teacher={cfg.stage.teacher}: train one first (python -m depthany.train "
            f"stage=teacher), "
            "or pass the run directory or model.safetensors of another"
        )
    if cfg.model.pretrained and cfg.model.weights is not None and not Path(cfg.model.weights).exists():
        raise ValueError(
            f"no file at model.weights={cfg.model.weights}: pass the path of the encoder's weights, "
            "or model.pretrained=false to start from random ones"
        )
    return cfg


def _require_a_root(cfg: DictConfig, kind: str, wanted: int) -> None:
    """Raise a `ValueError` where the stage wants images of a kind and every set of it lacks its root."""
    entries = cfg.data[kind]
    if wanted and entries and not rooted(entries):
        keys = " ".join(f"data.{kind}.{name}.root=..." for name in entries)
        raise ValueError(f"no {kind} set has a root, and stage={cfg.stage.name} needs one: set one of {keys}")


def per_micro_batch(cfg: DictConfig) -> tuple[int, int]:
    """Labeled and unlabeled images in a micro-batch."""
    ratio = tuple(cfg.stage.ratio) if cfg.stage.name == "student" else (1, 0)
    parts = sum(ratio) * cfg.accumulate
    if len(ratio) != 2 or min(ratio) < 0 or parts == 0:
        raise ValueError(f"stage.ratio={list(ratio)}: expected two shares, for example [1, 2]")
    if cfg.batch_size % parts:
        raise ValueError(
            f"batch_size={cfg.batch_size} cannot be split into accumulate={cfg.accumulate} micro-batches "
            f"of {ratio[0]}:{ratio[1]} images: make it a multiple of {parts}"
        )
    share = cfg.batch_size // parts
    return ratio[0] * share, ratio[1] * share


def check_processes(cfg: DictConfig, processes: Processes) -> None:
    """Raise a `ValueError` where a run cannot be shared by so many processes."""
    size, (labeled, unlabeled) = processes.size, per_micro_batch(cfg)
    if cfg.precision == "fp16" and shards_weights(cfg.parallel, cfg.model.encoder.get("size", ""), processes):
        raise ValueError("precision=fp16 is not for parallel=fsdp: use bf16, or parallel=ddp")
    if labeled + -(-unlabeled // 2) < size:  # unlabeled images come in pairs
        raise ValueError(
            f"batch_size={cfg.batch_size} is that of all processes together, and a micro-batch of {labeled} "
            f"labeled and {unlabeled} unlabeled images is too small for {size}: raise batch_size, lower "
            "accumulate, or start fewer processes"
        )


def rooted(entries: DictConfig) -> list[str]:
    """Names of the sets whose root is not null."""
    return [str(name) for name, entry in entries.items() if entry.get("root", "") is not None]
