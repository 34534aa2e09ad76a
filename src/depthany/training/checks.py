"""What the configuration of a training run must be: types, ranges, choices, and how they go together."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from depthany.config.entry import require, require_least, typed
from depthany.config.schema import STAGES, TrainSettings
from depthany.data.sampler import ORDERS
from depthany.losses.affine_invariant import REDUCTIONS
from depthany.losses.features import MEANS_OVER
from depthany.losses.normalise import NORMALISATIONS
from depthany.models.dinov2 import PATCH
from depthany.system.distributed import Processes
from depthany.training.checkpoints.writer import IF_SAVE_FAILS
from depthany.training.parallel import PARALLELS, shards_weights

ONLINE = "online"  # the teacher labels each view while the student trains
_LEAST = {
    "batch_size": 1,
    "accumulate": 1,
    "keep_checkpoints": 1,
    "crop_size": 1,
    "threads": 1,
    "seed": 0,
    "workers": 0,
    "log_every": 0,
    "image_every": 0,
    "eval_every": 0,
    "save_every": 0,
    "data.min_side": 1,
    "data.window": 1,
    "data.max_unreadable_share": 0,
    "data.read_timeout": 0,
    "optimizer.clip_norm": 0,
    "optimizer.warmup_steps": 0,
}
_CHOICES = {
    "if_save_fails": IF_SAVE_FAILS,
    "loss.normalisation": NORMALISATIONS,
    "loss.reduction": REDUCTIONS,
    "parallel": PARALLELS,
    "data.order": ORDERS,
    "stage.feature_alignment.mean_over": MEANS_OVER,
}


def check(cfg: DictConfig) -> DictConfig:
    """The configuration with its types checked; finds what the user can mend before any data is loaded.

    Raises:
        ValueError: (or one of OmegaConf's errors) a setting has a wrong type, no value, or a value that
            cannot be.
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
    typed(cfg.stage, STAGES[cfg.stage.name])
    cfg = typed(cfg, TrainSettings)
    is_student = cfg.stage.name == "student"
    require(cfg, ignore=() if is_student else ("data.unlabeled",))
    if cfg.crop_size % PATCH:
        nearest = max(1, round(cfg.crop_size / PATCH)) * PATCH
        raise ValueError(f"crop_size={cfg.crop_size} is not a multiple of {PATCH}: try {nearest}")
    require_least(cfg, _LEAST)
    for key, choices in _CHOICES.items():
        value = OmegaConf.select(cfg, key)  # None: a setting of the other stage
        if value is not None and value not in choices:
            raise ValueError(f"unknown {key} {value!r}; choose from {', '.join(choices)}")
    if len(cfg.optimizer.betas) != 2:
        raise ValueError(
            f"optimizer.betas={cfg.optimizer.betas}: expected two numbers, for example [0.9, 0.999]"
        )
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
