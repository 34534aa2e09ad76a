"""Settings of a training run (configs/train.yaml and its groups); the YAML files explain each of them."""

from dataclasses import dataclass, field
from typing import Any

from depthany.config.schema import BatchSettings
from depthany.data.mixture import DataSettings
from depthany.data.perturb import Perturb
from depthany.losses.affine_invariant import NORMALISATIONS, REDUCTIONS
from depthany.losses.features import MEANS_OVER
from depthany.system.rules import setting
from depthany.training.checkpoints.writer import IF_SAVE_FAILS
from depthany.training.parallel import PARALLELS


@dataclass
class OptimizerSettings:
    lr: float = setting()
    decoder_lr_factor: float = setting()
    weight_decay: float = setting()
    betas: list[float] = setting(length=2)
    warmup_steps: int = setting(least=0)
    decay_power: float = setting()
    clip_norm: float | None = setting(None, least=0)


@dataclass
class LossSettings:
    normalisation: str = setting(choices=NORMALISATIONS)
    reduction: str = setting(choices=REDUCTIONS)


@dataclass
class ModelSettings:
    encoder: dict[str, Any] = setting()
    decoder: dict[str, Any] = setting()
    head: dict[str, Any] = setting()
    pretrained: bool = setting()
    weights: str | None = None


@dataclass
class TeacherSettings:
    name: str = setting()


@dataclass
class TermWeights:
    labeled: float = setting()
    unlabeled: float = setting()
    feature: float = setting()


@dataclass
class FeatureAlignmentSettings:
    alpha: float = setting()
    mean_over: str = setting(choices=MEANS_OVER)
    frozen_input: str = setting(choices=("perturbed", "clean"))
    encoder: str | None = None
    weights: str | None = None


@dataclass
class StudentSettings(TeacherSettings):
    teacher: str = setting()
    ratio: list[int] = setting(length=2, least=0)
    weights: TermWeights = field(default_factory=TermWeights)
    trim: float = setting()
    feature_alignment: FeatureAlignmentSettings = field(default_factory=FeatureAlignmentSettings)


@dataclass
class TrainSettings(BatchSettings):
    """Settings of `python -m depthany.train`. The dataclass of `stage` depends on its name: `STAGES`."""

    run_dir: str = setting()
    overwrite: bool = setting()
    seed: int = setting(least=0)
    epochs: float = setting()
    passes: float = setting()
    steps: int | None = None
    accumulate: int = setting(least=1)
    pseudo_labels: str = setting()
    crop_size: int = setting(least=1)
    channels_last: bool = setting()
    compile: bool = setting()
    parallel: str = setting(choices=PARALLELS)
    activation_checkpointing: bool = setting()
    workers: int = setting(least=0)
    log_every: int = setting(least=0)
    image_every: int = setting(least=0)
    eval_every: int = setting(least=0)
    save_every: int = setting(least=0)
    keep_checkpoints: int = setting(least=1)
    if_save_fails: str = setting(choices=IF_SAVE_FAILS)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    perturb: Perturb = field(default_factory=Perturb)
    stage: Any = setting()


STAGES = {"teacher": TeacherSettings, "student": StudentSettings}
