"""Checks how the settings of a training run go together; their bounds stand in `training.settings`."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from depthany.config.checker import check_settings, settings_object
from depthany.data.weighted import named_weights
from depthany.losses.table import require_terms_of
from depthany.metrics.table import METRICS, require_metrics
from depthany.models.files.download import missing_file
from depthany.models.files.model_source import ModelSource
from depthany.system.distributed import Processes
from depthany.system.sample import HOW_TO_GET, lacks_sample, require_sample
from depthany.training.loggers.table import LOGGERS
from depthany.training.next_command import FOLDER
from depthany.training.parallel import uses_fsdp
from depthany.training.settings import ONCE, ONLINE, TrainSettings
from depthany.training.stages.base import Stage, TermsSettings
from depthany.training.stages.table import STAGES


def check(cfg: DictConfig) -> TrainSettings:
    """Returns the settings of a run. It finds the user's mistakes before any data is loaded.

    Raises:
        ValueError: a setting is unknown, or its value is missing, not allowed, or does not go with another.
        omegaconf.ValidationError: a value has the wrong type.
    """
    if cfg.stage.name not in STAGES:
        raise ValueError(f"unknown stage.name {cfg.stage.name!r}; choose from {', '.join(STAGES)}")
    stage = STAGES[cfg.stage.name]
    if stage.primary not in METRICS:
        raise ValueError(
            f"stage={cfg.stage.name} has the primary metric {stage.primary!r}, which is unknown; choose from "
            f"{', '.join(METRICS)}"
        )
    _refuse_settings_of_others(cfg.stage, stage)
    _leave_out_undrawn(cfg, stage)
    settings = settings_object(check_settings(cfg, TrainSettings, stage=stage.Settings), TrainSettings)
    _require_sample(settings)
    for kind, count in zip(("labeled", "unlabeled"), per_micro_batch(settings)):
        _require_a_root(settings, kind, count)
        set_weights(settings, kind)
    if isinstance(settings.stage, TermsSettings):
        require_terms_of(stage.predicts, settings.stage.terms, f"stage={settings.stage.name}")
    _require_teacher(settings, stage)
    _require_init(settings)
    _require_validations(settings)
    if settings.eval_metrics:
        require_metrics(
            settings.eval_metrics, "classes" if stage.predicts == "classes" else "depth", "eval_metrics"
        )
    for name in settings.loggers:
        LOGGERS[name].require()
    _require_weights(settings)
    return settings


def _require_sample(settings: TrainSettings) -> None:
    """Raises a ValueError that says how to get the sample, if the run reads it and it is missing."""
    kinds = (settings.data.labeled, settings.data.unlabeled, settings.data.val)
    roots = [entry.get("root") for entries in kinds for entry in entries.values()]
    own = "data=folder_classes" if settings.stage.name == "segmentation" else "data=folder"
    require_sample(
        roots, f"your own images need no sample: {own} data.labeled.mine.root=FOLDER experiment=none"
    )


def _require_weights(settings: TrainSettings) -> None:
    """Raises ValueError if the encoder's weights are missing."""
    weights = settings.model.weights
    is_read = settings.model.pretrained and settings.model.init is None
    if not is_read or weights is None or Path(weights).exists():
        return
    if lacks_sample(weights):
        raise ValueError(
            "experiment=sample, the default, starts from the encoder of the sample, which is not here: pass "
            "experiment=none (the paper's recipe, with DINOv2), another experiment or "
            f"model.pretrained=false; or get the sample: {HOW_TO_GET}"
        )
    raise ValueError(
        f"no file at model.weights={weights} (looked from {Path.cwd()}): pass the path of the encoder's "
        "weights, or model.pretrained=false to start from random ones"
    )


def _leave_out_undrawn(cfg: DictConfig, stage: type[Stage]) -> None:
    """Leaves out the sets of a kind of image that the stage does not draw: they need no root."""
    kinds = ("labeled", "unlabeled")
    checked = check_settings(
        cfg, TrainSettings, optional=tuple(f"data.{kind}" for kind in kinds), stage=stage.Settings
    )
    for kind, share in zip(kinds, stage.ratio(checked.stage)):
        if not share and kind in cfg.data:
            cfg.data[kind] = {}
            if "weights" in cfg.data:
                cfg.data.weights[kind] = None


def _refuse_settings_of_others(cfg: DictConfig, stage: type[Stage]) -> None:
    """Raises a ValueError for settings that only other stages have, as an experiment may bring them."""
    known = {each.name for each in fields(stage.Settings)}
    for name, other in STAGES.items():
        foreign = [key for key in cfg if key not in known and key in {f.name for f in fields(other.Settings)}]
        if foreign:
            keys = ", ".join(f"stage.{key}" for key in foreign)
            raise ValueError(
                f"{keys}: not of stage={cfg.name} but of stage={name}, perhaps from an experiment; choose "
                f"stage={name}, or leave it"
            )


def _require_teacher(settings: TrainSettings, stage: type[Stage]) -> None:
    """Raises ValueError if a stage lacks the teacher that it needs, or gets labels that it does not use."""
    name = settings.stage.name
    if not stage.needs.teacher and settings.pseudo_labels not in (ONLINE, ONCE):
        raise ValueError(
            f"pseudo_labels={settings.pseudo_labels}: stage={name} learns from no teacher; leave it out"
        )
    if stage.needs.teacher:
        teacher = ModelSource.of("stage.teacher", settings.stage.teacher)
        if not _may_exist(teacher, settings):
            raise ValueError(no_teacher(teacher))


def _require_init(settings: TrainSettings) -> None:
    """Raises ValueError if the model to start from is missing."""
    if settings.model.init is None:
        return
    init = ModelSource.of("model.init", settings.model.init)
    if not _may_exist(init, settings):
        if line := missing_file(init.source):
            raise ValueError(f"{init}: {line}")
        raise ValueError(
            f"no model at {init}, from which the run starts (looked from {Path.cwd()}): train it first "
            "(python -m depthany.train stage=teacher, then stage=student), or pass another, such as "
            "model.init=outputs/teacher or an official .pth; model.init=null starts from the bare encoder"
        )


def _may_exist(source: ModelSource, settings: TrainSettings) -> bool:
    """Whether a model exists, or can be on the hub: not if it is named like a run beside this one."""
    is_future_run = Path(source.source).parent in (Path("outputs"), Path(settings.run_dir).parent)
    return source.exists if is_future_run else source.may_exist


def no_teacher(source: ModelSource) -> str:
    """Returns the message about a missing teacher."""
    if line := missing_file(source.source):
        return f"{source}: {line}"
    return (
        f"no teacher at {source}: train one first (python -m depthany.train stage=teacher), or pass the run "
        "directory or model.safetensors of another, an official .pth, a Hugging Face folder or a hub id"
    )


def _require_validations(settings: TrainSettings) -> None:
    """Raises a ValueError if early stopping has no validations to count."""
    patience = settings.early_stopping.patience
    if patience is None:
        return
    if settings.eval_every == 0:
        raise ValueError(
            f"early_stopping.patience={patience} counts validations, but eval_every=0 validates only at the "
            "end: set eval_every, or early_stopping.patience=null"
        )
    if not rooted(settings.data.val):
        keys = " ".join(f"data.val.{name}.root=..." for name in settings.data.val) or "data.val"
        raise ValueError(
            f"early_stopping.patience={patience} needs a validation set: set one of {keys}, or "
            "early_stopping.patience=null"
        )


def _require_a_root(settings: TrainSettings, kind: str, count: int) -> None:
    """Raises a ValueError if a stage draws images of a kind and every set of it lacks its root."""
    entries = getattr(settings.data, kind)
    if count and entries and not rooted(entries):
        keys = " ".join(f"data.{kind}.{name}.root=..." for name in entries)
        raise ValueError(
            f"no {kind} set has a root, and stage={settings.stage.name} needs one: set one of {keys}"
        )


def per_micro_batch(settings: TrainSettings) -> tuple[int, int]:
    """Returns the numbers of labeled and unlabeled images in a micro-batch."""
    labeled, unlabeled = STAGES[settings.stage.name].ratio(settings.stage)
    parts = (labeled + unlabeled) * settings.accumulate
    if settings.batch_size % parts:
        raise ValueError(
            f"batch_size={settings.batch_size} cannot be split into accumulate={settings.accumulate} "
            f"micro-batches of {labeled}:{unlabeled} images: make it a multiple of {parts}"
        )
    share = settings.batch_size // parts
    return labeled * share, unlabeled * share


def set_weights(settings: TrainSettings, kind: str) -> list[float] | None:
    """Returns the weights of the labeled or unlabeled sets that have a root; None without weights."""
    weights, entries = getattr(settings.data.weights, kind), getattr(settings.data, kind)
    return None if weights is None else named_weights(kind, weights, list(entries), rooted(entries))


def check_processes(settings: TrainSettings, processes: Processes) -> None:
    """Raises ValueError if `size` processes cannot share the run."""
    size, (labeled, unlabeled) = processes.size, per_micro_batch(settings)
    size_name = settings.model.encoder.get("size", "")
    if settings.precision == "fp16" and uses_fsdp(settings.parallel, size_name, processes):
        raise ValueError("precision=fp16 is not for parallel=fsdp: use bf16, or parallel=ddp")
    if settings.cuda_graphs and size > 1:
        raise ValueError(f"cuda_graphs=true is for one process, but {size} were started: leave it out")
    if labeled + -(-unlabeled // 2) < size:  # unlabeled images come in pairs
        raise ValueError(
            f"batch_size={settings.batch_size} is that of all processes together, and a micro-batch of "
            f"{labeled} labeled and {unlabeled} unlabeled images is too small for {size}: raise batch_size, "
            "lower accumulate, or start fewer processes"
        )


def rooted(entries: Mapping[str, Any]) -> list[str]:
    """Returns the names of the sets whose root is not null."""
    return [str(name) for name, entry in entries.items() if entry.get("root", "") is not None]


def roots_to_name(cfg: DictConfig) -> tuple[str, ...]:
    """Returns the settings by which unlabeled sets get their roots, with a placeholder, where no set has one.

    Args:
        cfg: the configuration as composed, before sets that the stage does not draw are left out.
    """
    entries = cfg.data.get("unlabeled") or {}
    missing = [name for name, entry in entries.items() if OmegaConf.is_missing(entry, "root")]
    unset = [name for name in entries if name in missing or entries[name].get("root") is None]
    if "unlabeled_root" in cfg.data and len(unset) == len(entries):
        return (f"data.unlabeled_root={FOLDER}",)
    chosen = missing or (unset[:1] if len(unset) == len(entries) else [])
    return tuple(f"data.unlabeled.{name}.root={FOLDER}" for name in chosen)
