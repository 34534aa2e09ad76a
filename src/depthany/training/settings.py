"""Settings of a training run (configs/train.yaml and its groups); the YAML files explain each of them."""

from dataclasses import dataclass, field
from typing import Any

from depthany.config.schema import BatchSettings
from depthany.data.mixture import DataSettings
from depthany.data.perturb import Perturb
from depthany.data.transforms import crop_shape
from depthany.losses.difference import REDUCTIONS
from depthany.losses.gradient import SCALES
from depthany.losses.normalise import NORMALISATIONS
from depthany.system.rules import setting
from depthany.training.checkpoints.writer import IF_SAVE_FAILS
from depthany.training.early_stopping import EarlyStoppingSettings
from depthany.training.ema import EmaSettings
from depthany.training.loggers.table import LOGGERS
from depthany.training.optim import OptimizerSettings, ScheduleSettings
from depthany.training.parallel import PARALLELS
from depthany.training.regional import CHOICES as COMPILE
from depthany.training.starting_weights import FREEZE, INIT_PARTS

# Values of `pseudo_labels` besides the folder of a store
ONLINE = "online"  # the teacher labels each view while the student trains
ONCE = "once"  # the teacher labels each image before the first step, into the run directory


@dataclass
class LossSettings:
    """The group `loss`: options of the losses on maps."""

    normalisation: str = setting(choices=NORMALISATIONS)
    reduction: str = setting(choices=REDUCTIONS)
    scales: int = setting(SCALES, least=1, most=10)
    trim_gradient: bool = False


@dataclass
class ModelSettings:
    """The group `model`; encoder, decoder and head are arguments of `depthany.models.model.build_model`."""

    encoder: dict[str, Any] = setting()
    decoder: dict[str, Any] = setting()
    head: dict[str, Any] = setting()
    pretrained: bool = setting()
    weights: str | None = None
    init: Any = None  # see `ModelSource`
    init_parts: str = setting("all", choices=INIT_PARTS)
    freeze: str = setting("none", choices=FREEZE)


@dataclass
class TrainSettings(BatchSettings):
    """Settings of `python -m depthany.train`. The dataclass of `stage` is the chosen stage's `Settings`."""

    run_dir: str = setting(filled=True)
    overwrite: bool = setting()
    seed: int = setting(least=0)
    epochs: float = setting()
    passes: float = setting()
    steps: int | None = None
    accumulate: int = setting(least=1)
    pseudo_labels: str = setting()
    crop_size: Any = setting(least=1)  # side of the square, or [height, width]
    channels_last: bool = setting()
    compile: Any = setting(choices=COMPILE)  # auto, or true or false
    cuda_graphs: bool = setting()
    deterministic: bool = setting()
    parallel: str = setting(choices=PARALLELS)
    activation_checkpointing: bool = setting()
    workers: int = setting(least=0)
    loggers: list[str] = setting(choices=LOGGERS)
    log_every: int = setting(least=0)
    image_every: int = setting(least=0)
    eval_every: int = setting(least=0)
    eval_metrics: list[str] = field(default_factory=list)
    save_every: int = setting(least=0)
    keep_checkpoints: int = setting(least=1)
    if_save_fails: str = setting(choices=IF_SAVE_FAILS)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    ema: EmaSettings = field(default_factory=EmaSettings)
    early_stopping: EarlyStoppingSettings = field(default_factory=EarlyStoppingSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    perturb: Perturb = field(default_factory=Perturb)
    stage: Any = setting()

    def __post_init__(self) -> None:
        crop_shape(self.crop_size)
        if self.cuda_graphs and (
            self.compile is not True or self.accumulate > 1 or self.activation_checkpointing
        ):
            # gradients of a graph lie in its own memory, which the next micro-batch overwrites; graphs of
            # blocks that are computed again have not been tried
            got = {key: getattr(self, key) for key in ("compile", "accumulate", "activation_checkpointing")}
            raise ValueError(
                "cuda_graphs=true needs compile=true accumulate=1 activation_checkpointing=false, got "
                + " ".join(f"{key}={str(value).lower()}" for key, value in got.items())
            )
