"""Builds the objects of a training run from its settings."""

import math
from collections.abc import Mapping, Sequence, Sized
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate

from depthany.data.class_counts import class_notes
from depthany.data.class_list import ClassList
from depthany.data.counts import set_notes
from depthany.data.dataset import TrainingSet
from depthany.data.plausible import label_notes
from depthany.data.sampler import MixedBatches
from depthany.data.targets import require_metres
from depthany.data.transforms import crop_shape
from depthany.models import model as models
from depthany.models.files.hub import DownloadError
from depthany.models.files.model_source import ModelSource
from depthany.models.files.weights import load_encoder_weights
from depthany.models.half_weights import hold_weights
from depthany.models.model import DenseModel
from depthany.system.distributed import Processes
from depthany.training.checkpoints.state import TrainingState
from depthany.training.checks import no_teacher, per_micro_batch, rooted
from depthany.training.class_model import (
    learns_classes,
    require_class_head,
    require_same_classes,
    with_class_head,
)
from depthany.training.draw_order import build_order, weight_notes
from depthany.training.ema import WeightAverage
from depthany.training.loop import LoopSettings
from depthany.training.metric_model import (
    labeled_options,
    learned_ends_m,
    metric_notes,
    require_cameras,
    require_trained_head,
    trained_on,
    with_metric_head,
)
from depthany.training.optim import build_optimizer
from depthany.training.parallel import shard_run, uses_fsdp
from depthany.training.settings import ONCE, ModelSettings, TrainSettings
from depthany.training.stages.base import StageContext, require_declared, trained_parameters
from depthany.training.stages.table import STAGES
from depthany.training.starting_weights import FREEZE, build_from, warn_of_unused_parts
from depthany.training.stored_labels import open_pseudo_labels


def load_teacher(settings: TrainSettings, device: torch.device | str) -> DenseModel | None:
    """Loads the teacher that the stage needs; returns None if it needs none.

    Raises:
        ValueError: the teacher predicts another quantity than the stage learns.
    """
    stage = STAGES[settings.stage.name]
    if not stage.needs.teacher:
        return None
    source = ModelSource.of("stage.teacher", settings.stage.teacher)
    try:
        teacher = source.load(device)
    except DownloadError as error:
        raise ValueError(f"{no_teacher(source)}; nor is it found on the hub: {error}") from None
    teacher.quantity.require(stage.predicts, str(source), "pass a model that predicts this")
    return teacher


def build_state(
    settings: TrainSettings,
    teacher: DenseModel | None,
    device: torch.device,
    amp: torch.dtype | None,
    processes: Processes,
    labeled: Sequence[Any] = (),
) -> TrainingState:
    """Builds model, stage and optimizer in their initial state, on the device, the same on all ranks.

    Args:
        labeled: the labeled sets, from which a metric model takes its range.
    """
    settings, chosen = with_metric_head(settings, labeled), STAGES[settings.stage.name]
    settings = with_class_head(settings, labeled)
    torch.manual_seed(settings.seed + chosen.seed_offset)
    model = build_model(settings.model, min(crop_shape(settings.crop_size)))
    _require_quantity(model, settings)
    require_trained_head(model, settings, labeled)
    require_class_head(model, settings, labeled)
    model.trained_on = trained_on(settings, labeled)
    model.encoder.activation_checkpointing = settings.activation_checkpointing
    context = StageContext(model, teacher, settings.perturb, asdict(settings.loss), processes.mean)
    stage = chosen.build(settings.stage, context)
    require_declared(stage)
    require_crop_shape(crop_shape(settings.crop_size), [model, *stage.frozen().values()])
    for network in (model, stage):
        network.to(device)
    if uses_fsdp(settings.parallel, model.encoder.label, processes):
        shard_run(model, stage, processes, device)  # needs contiguous weights of one type
    else:
        hold_weights(stage.frozen().values(), amp)
        if settings.channels_last:
            for network in (model, stage):
                network.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, trained_parameters(stage), settings.optimizer)
    scaler = torch.amp.GradScaler(device.type, enabled=amp is torch.float16)
    average = WeightAverage(model, settings.ema) if settings.ema.decay is not None else None
    return TrainingState(model, stage.train(), optimizer, scaler, average=average)


def _require_quantity(model: DenseModel, settings: TrainSettings) -> None:
    """Raises a ValueError unless the head predicts the quantity that the stage learns."""
    init, parts = settings.model.init, settings.model.init_parts
    if init is not None and parts == "all":
        who = str(ModelSource.of("model.init", init))
        other = "pass another file, or model.init_parts=encoder+decoder"
    else:
        who, other = f"model.head.name={settings.model.head['name']}", "choose another head"
    chosen = STAGES[settings.stage.name]
    model.quantity.require(chosen.predicts, who, f"stage={settings.stage.name} learns it, {other}")


def build_model(settings: ModelSettings, input_size: int) -> DenseModel:
    """Builds the model with random, pre-trained or trained weights as the settings say, and freezes parts.

    Args:
        input_size: pixels of the shorter side that it is trained at, which it remembers.
    """
    parts = {"encoder": settings.encoder, "decoder": settings.decoder, "head": settings.head}
    if settings.init is not None:
        init = ModelSource.of("model.init", settings.init)
        model = build_from(init, settings.init_parts, parts, input_size)
    else:
        model = models.build_model(**parts, input_size=input_size)
        if settings.pretrained:
            others = load_encoder_weights(model.encoder, settings.weights)
            warn_of_unused_parts(str(settings.weights), others)
    model.freeze(FREEZE[settings.freeze])
    return model


def require_crop_shape(shape: tuple[int, int], networks: Sequence[Any]) -> None:
    """Raises a ValueError unless all models and encoders among the networks take crops of (height, width)."""
    multiples = {each.preprocessing.multiple for each in networks if hasattr(each, "preprocessing")}
    multiple = math.lcm(*multiples)
    if any(side % multiple for side in shape):
        nearest = [max(1, round(side / multiple)) * multiple for side in shape]
        wanted = " and ".join(map(str, sorted(multiples)))
        given, better = (sides[0] if sides[0] == sides[1] else list(sides) for sides in (shape, nearest))
        raise ValueError(f"crop_size={given} is not a multiple of {wanted}: try {better}")


def build_sets(entries: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Builds the data sets of a mixture, by name; leaves out those whose root is null.

    Args:
        entries: arguments of each set, with its class as `_target_`.
        key: key of the mixture in the configuration, for messages.

    Raises:
        ValueError: a set refuses its arguments.
    """
    return {name: _build_set(entries[name], f"{key}.{name}") for name in rooted(entries)}


def _build_set(entry: Mapping[str, Any], key: str) -> Any:
    try:
        return instantiate(entry)
    except InstantiationException as error:
        if not isinstance(error.__cause__, ValueError):
            raise
        raise ValueError(f"{key}: {error.__cause__}") from error


def read_class_lists(settings: TrainSettings) -> dict[str, ClassList]:
    """Returns the classes of those labeled sets that have them in a file and lie where the settings say."""
    found = dict[str, ClassList]()
    for name in rooted(settings.data.labeled):
        entry = settings.data.labeled[name]
        read = getattr(get_class(entry["_target_"]), "listed_classes", None)
        if read is not None and Path(entry["root"]).is_dir():
            found[name] = read(**{key: value for key, value in entry.items() if key != "_target_"})
    return found


def dataset_notes(
    settings: TrainSettings, dataset: TrainingSet, val_sets: Mapping[str, Any] | None = None
) -> list[str]:
    """Returns notes on the sets, validation sets included (see `set_notes`), and warnings on labels that do
    not look like what the settings say; reads some images of each set.

    Raises:
        ValueError: the settings do not say the unit of labels, or a validation set has no depth in metres, or
            lacks the camera that it needs.
    """
    of_validation = {f"data.val.{name}": images for name, images in (val_sets or {}).items()}
    if not learns_classes(settings):
        for name, images in of_validation.items():
            require_metres(images, name)
    require_cameras(settings, of_validation)
    kinds: dict[str, Sequence[Sized]] = {"labeled": dataset.labeled, "unlabeled": dataset.unlabeled}
    sets = {
        f"data.{kind}.{name}": images
        for kind, members in kinds.items()
        for name, images in zip(rooted(getattr(settings.data, kind)), members)
    }
    labeled = {name: images for name, images in sets.items() if name.startswith("data.labeled.")}
    require_same_classes(settings, labeled | of_validation)
    ends_m = learned_ends_m(settings, dataset.labeled, dataset.options)
    warnings, notes = label_notes(labeled | of_validation, ends_m, not dataset.options.keeps_label_size)
    of_sets = set_notes(sets | of_validation)  # warnings first
    first = sum(line.startswith("warning: ") for line in of_sets)
    warnings = [*of_sets[:first], *(f"warning: {line}" for line in warnings)]
    notes += [*metric_notes(settings, dataset.labeled), *class_notes(labeled)]
    return [*warnings, *weight_notes(settings, dataset), *of_sets[first:], *notes]


def build_training_set(settings: TrainSettings, teacher: DenseModel | None = None) -> TrainingSet:
    """Builds the sets of the kinds that the stage draws, with stored labels of `teacher` if there is one.

    `pseudo_labels=once` makes its labels later, when the run directory is claimed.
    """
    stage = STAGES[settings.stage.name]
    if settings.pseudo_labels == ONCE and teacher is not None:
        require_crop_shape(crop_shape(settings.crop_size), [teacher])
    draws_labeled, draws_unlabeled = stage.ratio(settings.stage)
    labeled = build_sets(settings.data.labeled, "data.labeled") if draws_labeled else {}
    unlabeled = build_sets(settings.data.unlabeled, "data.unlabeled") if draws_unlabeled else {}
    return TrainingSet(
        list(labeled.values()),
        list(unlabeled.values()),
        settings.crop_size,
        settings.data.convert_images,
        settings.data.unreadable,
        settings.data.decode,
        settings.data.min_side,
        open_pseudo_labels(settings, teacher, unlabeled) if teacher is not None else None,
        stage.target,
        labeled_options(settings, list(labeled.values())),
    )


def build_sampler(settings: TrainSettings, dataset: TrainingSet, processes: Processes) -> MixedBatches:
    """Builds the order of the run: passes over the unlabeled images if any are drawn, else epochs."""
    labeled, unlabeled = per_micro_batch(settings)
    for kind, wanted, count in (
        ("labeled", labeled, dataset.labeled_count),
        ("unlabeled", unlabeled, dataset.unlabeled_count),
    ):
        if wanted and not count:
            raise ValueError(f"stage={settings.stage.name} needs {kind} images, and data.{kind} names none")
    total = (
        round(settings.passes * dataset.unlabeled_count)
        if unlabeled
        else round(settings.epochs * dataset.labeled_count)
    )
    if settings.steps is not None:
        total = settings.steps * settings.accumulate * (unlabeled or labeled)
    if total < 1:
        raise ValueError(
            f"the run has no step: steps={settings.steps} epochs={settings.epochs} passes={settings.passes}"
        )
    return MixedBatches(
        *(dataset.labeled_count, dataset.unlabeled_count, labeled, unlabeled, total, settings.seed),
        labeled_order=build_order(settings, "labeled", dataset.labeled),
        unlabeled_order=build_order(settings, "unlabeled", dataset.unlabeled),
        rank=processes.rank,
        size=processes.size,
    )


def build_loop_settings(settings: TrainSettings, micro_batches: int) -> LoopSettings:
    """Returns the settings of the loop, for a run of so many micro-batches."""
    return LoopSettings(
        micro_batches=micro_batches,
        accumulate=settings.accumulate,
        seed=settings.seed,
        schedule=settings.schedule,
        clip_norm=settings.optimizer.clip_norm,
        log_every=settings.log_every,
        image_every=settings.image_every,
        eval_every=settings.eval_every,
        save_every=settings.save_every,
        early_stopping=settings.early_stopping,
    )
