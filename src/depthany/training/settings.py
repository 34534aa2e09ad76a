"""Settings of a training run: types, choices and ranges; configs/train.yaml has values and meaning."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from depthany.config.schema import DataSettings, ModelSettings
from depthany.data.perturb import Perturb
from depthany.data.sampler import ORDERS
from depthany.losses.affine_invariant import REDUCTIONS
from depthany.losses.normalise import NORMALISATIONS
from depthany.training.checkpoints.writer import IF_SAVE_FAILS
from depthany.training.optim import OptimizerSettings, ScheduleSettings
from depthany.training.parallel import PARALLELS

ONLINE = "online"  # `pseudo_labels`: the teacher labels each view while the student trains


@dataclass
class LossSettings:
    """The group `loss`: options of the losses on maps."""

    normalisation: str
    reduction: str

    def __post_init__(self) -> None:
        require_choice("loss.normalisation", self.normalisation, NORMALISATIONS)
        require_choice("loss.reduction", self.reduction, REDUCTIONS)


@dataclass
class TrainSettings:
    """configs/train.yaml with its groups; `stage` is an object of the chosen stage's `Settings`."""

    run_dir: str
    overwrite: bool
    seed: int
    epochs: float
    passes: float
    steps: int | None
    batch_size: int
    accumulate: int
    pseudo_labels: str
    crop_size: int
    precision: str
    device: str
    threads: int | None
    channels_last: bool
    compile: bool
    parallel: str
    activation_checkpointing: bool
    workers: int
    log_every: int
    image_every: int
    eval_every: int
    save_every: int
    keep_checkpoints: int
    if_save_fails: str
    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    loss: LossSettings
    model: ModelSettings
    data: DataSettings
    stage: Any
    perturb: Perturb = field(default_factory=Perturb)

    def __post_init__(self) -> None:
        for key in ("batch_size", "accumulate", "keep_checkpoints", "crop_size", "threads"):
            require_least(key, getattr(self, key), 1)
        for key in ("seed", "workers", "log_every", "image_every", "eval_every", "save_every"):
            require_least(key, getattr(self, key), 0)
        for key in ("min_side", "window"):
            require_least(f"data.{key}", getattr(self.data, key), 1)
        for key in ("max_unreadable_share", "read_timeout"):
            require_least(f"data.{key}", getattr(self.data, key), 0)
        require_choice("data.order", self.data.order, ORDERS)
        require_choice("parallel", self.parallel, PARALLELS)
        require_choice("if_save_fails", self.if_save_fails, IF_SAVE_FAILS)


def require_least(key: str, value: float | None, least: float) -> None:
    """Raises a ValueError if a setting is below its smallest value; None is fine."""
    if value is not None and value < least:
        raise ValueError(f"{key}={value}: expected {least} or more")


def require_choice(key: str, value: str, choices: Iterable[str]) -> None:
    """Raises a ValueError that lists the choices unless a setting is one of them."""
    if value not in choices:
        raise ValueError(f"unknown {key} {value!r}; choose from {', '.join(choices)}")
