"""From the configuration to objects. Below this file and the entries nothing sees the configuration."""

from collections.abc import Mapping, Sequence, Sized
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from depthany.checkpoint import Parts
from depthany.checkpoint_writer import IF_SAVE_FAILS
from depthany.config import require, require_least, typed
from depthany.data.counts import count_warnings, left_out_notes
from depthany.data.dataset import TrainingSet
from depthany.data.perturb import Perturb
from depthany.data.pseudo_labels import RESIZE, PseudoLabels, describe_sets, differences, read_manifest
from depthany.data.sampler import ORDERS, MixedBatches, ShardOrder
from depthany.data.samples import UnlabeledSet
from depthany.distributed import Processes
from depthany.losses import MEANS_OVER, NORMALISATIONS, REDUCTIONS
from depthany.models.depth_model import DepthModel
from depthany.models.encoder import PATCH, Encoder
from depthany.models.weights import load_encoder_weights
from depthany.optim import build_optimizer
from depthany.parallel import PARALLELS, is_sharded, shard_weights, shards_weights
from depthany.schema import STAGES, TrainSettings
from depthany.scoring.predictors import weights_sha256
from depthany.stages import StudentStage, TeacherStage, trained_parameters

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
    if wanted and entries and not _rooted(entries):
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
    if cfg.precision == "fp16" and shards_weights(cfg.parallel, cfg.model.encoder, processes):
        raise ValueError("precision=fp16 is not for parallel=fsdp: use bf16, or parallel=ddp")
    if labeled + -(-unlabeled // 2) < size:  # unlabeled images come in pairs
        raise ValueError(
            f"batch_size={cfg.batch_size} is that of all processes together, and a micro-batch of {labeled} "
            f"labeled and {unlabeled} unlabeled images is too small for {size}: raise batch_size, lower "
            "accumulate, or start fewer processes"
        )


def build_parts(
    cfg: DictConfig,
    teacher: DepthModel | None,
    device: torch.device,
    amp: torch.dtype | None,
    processes: Processes,
) -> Parts:
    """Model, stage and optimizer in their initial state, on the device, the same in all processes."""
    is_student = cfg.stage.name == "student"
    torch.manual_seed(cfg.seed + 1_000_003 if is_student else cfg.seed)  # the student's start is its own
    model = build_model(cfg.model, cfg.crop_size)
    stage = (
        build_student_stage(cfg, model, teacher, processes)
        if is_student
        else TeacherStage(**cfg.loss, across=processes.mean)
    )
    for network in (model, stage):
        network.to(device)
    if shards_weights(cfg.parallel, cfg.model.encoder, processes):
        shard_weights(model, stage, processes, device)  # of contiguous weights alone
    elif cfg.channels_last:
        for network in (model, stage):
            network.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(
        model,
        trained_parameters(stage),
        lr=cfg.optimizer.lr,
        decoder_lr_factor=cfg.optimizer.decoder_lr_factor,
        weight_decay=cfg.optimizer.weight_decay,
        betas=tuple(cfg.optimizer.betas),
    )
    scaler = torch.amp.GradScaler(device.type, enabled=amp is torch.float16)
    return Parts(model, stage.train(), optimizer, scaler)


def build_model(model_cfg: DictConfig, input_size: int) -> DepthModel:
    """Model with a random decoder and, where asked, pre-trained encoder; it remembers its training size."""
    model = DepthModel(model_cfg.encoder, model_cfg.taps, input_size=input_size)
    if model_cfg.pretrained:
        load_encoder_weights(model.encoder, model_cfg.weights)
    return model


def build_student_stage(
    cfg: DictConfig, model: DepthModel, teacher: DepthModel | None, processes: Processes
) -> StudentStage:
    """Stage with its frozen networks; the frozen encoder is the student's own start or the one named."""
    alignment, frozen = cfg.stage.feature_alignment, None
    if cfg.stage.weights.feature > 0:
        if alignment.encoder is None:
            frozen = deepcopy(model.encoder)
        else:
            frozen = Encoder(alignment.encoder)
            load_encoder_weights(frozen, alignment.weights)
    return StudentStage(
        teacher,
        frozen,
        student_width=model.encoder.spec.embed_dim,
        perturb=Perturb(**_plain(cfg.perturb)),
        weights=_plain(cfg.stage.weights),
        trim=cfg.stage.trim,
        alpha=alignment.alpha,
        mean_over=alignment.mean_over,
        frozen_input=alignment.frozen_input,
        across=processes.mean,
        **cfg.loss,
    )


def build_sets(entries: DictConfig) -> dict[str, Any]:
    """The data sets of a mixture by name; those whose root is null are left out."""
    return {name: instantiate(entries[name]) for name in _rooted(entries)}


def _rooted(entries: DictConfig) -> list[str]:
    return [str(name) for name, entry in entries.items() if entry.get("root", "") is not None]


def dataset_notes(cfg: DictConfig, dataset: TrainingSet) -> list[str]:
    """Lines on sets that are not as large as expected, and on what is there and not used."""
    kinds: tuple[tuple[str, Sequence[Sized]], ...] = (
        ("labeled", dataset.labeled),
        ("unlabeled", dataset.unlabeled),
    )
    sets = {
        f"data.{kind}.{name}": each
        for kind, members in kinds
        for name, each in zip(_rooted(cfg.data[kind]), members)
    }
    return [*(f"warning: {line}" for line in count_warnings(sets)), *left_out_notes(sets)]


def open_pseudo_labels(
    cfg: DictConfig, teacher: DepthModel, unlabeled: Mapping[str, UnlabeledSet]
) -> PseudoLabels | None:
    """The store that the student learns from, None where the teacher labels during training.

    Raises:
        ValueError: the store is not complete, or of another teacher, input size or image set; each difference
            is named.
    """
    if cfg.pseudo_labels == ONLINE:
        return None
    store = Path(cfg.pseudo_labels)
    header, manifest = read_manifest(store)
    sets = describe_sets(unlabeled)
    expected = {
        "teacher": {"weights_sha256": weights_sha256(teacher)},
        "preprocessing": {"input_size": cfg.crop_size, "resize": RESIZE},
        "sets": sets,
    }
    found = {
        "teacher": {"weights_sha256": header.teacher["weights_sha256"]},
        "preprocessing": {key: header.preprocessing.get(key) for key in expected["preprocessing"]},
        "sets": {name: header.sets.get(name) for name in sets},
    }
    if changed := differences(found, expected, "the store has", "the run"):
        raise ValueError(
            f"pseudo_labels={store} does not fit the run ({'; '.join(changed)}): label anew with python -m "
            "depthany.pseudo_label, or pass the store of these, or pseudo_labels=online"
        )
    if not manifest["complete"]:
        raise ValueError(
            f"pseudo_labels={store} is not complete: finish it first, by the command that began it "
            "(python -m depthany.pseudo_label ...)"
        )
    return PseudoLabels(store, list(unlabeled))


def build_training_set(cfg: DictConfig, teacher: DepthModel | None = None) -> TrainingSet:
    """All labeled sets and, for the student, all unlabeled ones, with stored labels of `teacher`, if any."""
    unlabeled = build_sets(cfg.data.unlabeled) if cfg.stage.name == "student" else {}
    labeled = build_sets(cfg.data.labeled)
    return TrainingSet(
        list(labeled.values()),
        list(unlabeled.values()),
        cfg.crop_size,
        cfg.data.convert_images,
        cfg.data.unreadable,
        cfg.data.decode,
        cfg.data.min_side,
        open_pseudo_labels(cfg, teacher, unlabeled) if teacher is not None else None,
    )


def build_sampler(cfg: DictConfig, dataset: TrainingSet, processes: Processes) -> MixedBatches:
    """Order of the run: the teacher counts epochs of the labeled set, the student passes of the other."""
    labeled, unlabeled = per_micro_batch(cfg)
    for kind, wanted, count in (
        ("labeled", labeled, dataset.labeled_count),
        ("unlabeled", unlabeled, dataset.unlabeled_count),
    ):
        if wanted and not count:
            raise ValueError(f"stage={cfg.stage.name} needs {kind} images, and data.{kind} names none")
    total = (
        round(cfg.passes * dataset.unlabeled_count)
        if unlabeled
        else round(cfg.epochs * dataset.labeled_count)
    )
    if cfg.steps is not None:
        total = cfg.steps * cfg.accumulate * (unlabeled or labeled)
    if total < 1:
        raise ValueError(f"the run has no step: steps={cfg.steps} epochs={cfg.epochs} passes={cfg.passes}")
    order = None
    if unlabeled and cfg.data.order == "shards":
        sizes = np.concatenate([part.shard_sizes() for part in dataset.unlabeled])
        order = ShardOrder(sizes, cfg.data.window, cfg.seed)
    counts = dataset.labeled_count, dataset.unlabeled_count
    place = {"rank": processes.rank, "size": processes.size}
    return MixedBatches(*counts, labeled, unlabeled, total, cfg.seed, unlabeled_order=order, **place)


def describe(
    parts: Parts,
    dataset: TrainingSet,
    total_steps: int,
    device: torch.device,
    amp: torch.dtype | None,
    processes: int,
) -> str:
    """One line on what is about to happen."""
    config, step = parts.model.config, parts.state.step
    images = f"{dataset.labeled_count} labeled"
    images += f" + {dataset.unlabeled_count} unlabeled" if dataset.unlabeled_count else ""
    number_format = str(amp or torch.float32).removeprefix("torch.")
    begun = f"continuing at step {step} of {total_steps}" if step else f"{total_steps} steps"
    where = f"{device.type} in {number_format}"
    if processes > 1:
        where += f", {processes} processes ({'FSDP' if is_sharded(parts.model) else 'DDP'})"
    return f"{config['encoder']} on {images} images, {begun}, {where}"


def _plain(cfg: DictConfig) -> dict[str, Any]:
    return {str(key): value for key, value in cfg.items()}
