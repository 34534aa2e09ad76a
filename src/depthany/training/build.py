"""From the configuration to objects. Below this file and the entries nothing sees the configuration."""

from collections.abc import Mapping, Sequence, Sized
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from depthany.config.entry import plain
from depthany.data.counts import count_warnings, left_out_notes
from depthany.data.dataset import TrainingSet
from depthany.data.perturb import Perturb
from depthany.data.pseudo_labels.store import RESIZE, PseudoLabels, describe_sets, differences, read_manifest
from depthany.data.sampler import MixedBatches, ShardOrder
from depthany.data.samples import UnlabeledSet
from depthany.inference.ready_model import weights_sha256
from depthany.models import model as models
from depthany.models.files.weights import load_encoder_weights
from depthany.models.model import DenseModel
from depthany.system.distributed import Processes
from depthany.training.checkpoints.state import Parts
from depthany.training.checks import ONLINE, per_micro_batch, rooted
from depthany.training.loop import Loop
from depthany.training.optim import build_optimizer
from depthany.training.parallel import is_sharded, shard_weights, shards_weights
from depthany.training.stages.base import trained_parameters
from depthany.training.stages.student import StudentStage
from depthany.training.stages.teacher import TeacherStage


def build_parts(
    cfg: DictConfig,
    teacher: DenseModel | None,
    device: torch.device,
    amp: torch.dtype | None,
    processes: Processes,
) -> Parts:
    """Model, stage and optimizer in their initial state, on the device, the same in all processes."""
    is_student = cfg.stage.name == "student"
    torch.manual_seed(cfg.seed + 1_000_003 if is_student else cfg.seed)  # the student's start is its own
    model = build_model(cfg.model, cfg.crop_size)
    model.encoder.activation_checkpointing = cfg.activation_checkpointing
    stage = (
        build_student_stage(cfg, model, teacher, processes)
        if is_student
        else TeacherStage(**cfg.loss, across=processes.mean)
    )
    for network in (model, stage):
        network.to(device)
    if shards_weights(cfg.parallel, model.encoder.label, processes):
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


def build_model(model_cfg: DictConfig, input_size: int) -> DenseModel:
    """Builds the model with random weights or, if the settings say so, with a pre-trained encoder."""
    parts = {name: plain(model_cfg[name]) for name in ("encoder", "decoder", "head")}
    model = models.build_model(**parts, input_size=input_size)
    if model_cfg.pretrained:
        load_encoder_weights(model.encoder, model_cfg.weights)
    return model


def build_student_stage(
    cfg: DictConfig, model: DenseModel, teacher: DenseModel | None, processes: Processes
) -> StudentStage:
    """Stage with its frozen networks; the frozen encoder is the student's own start or the one named."""
    alignment, frozen = cfg.stage.feature_alignment, None
    if cfg.stage.weights.feature > 0:
        if alignment.encoder is None:
            frozen = deepcopy(model.encoder)
        else:
            frozen = models.build_encoder({"name": "dinov2", "size": alignment.encoder})
            load_encoder_weights(frozen, alignment.weights)
    return StudentStage(
        teacher,
        frozen,
        student_width=model.encoder.widths[-1],
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
    return {name: instantiate(entries[name]) for name in rooted(entries)}


def dataset_notes(cfg: DictConfig, dataset: TrainingSet) -> list[str]:
    """Lines on sets that are not as large as expected, and on what is there and not used."""
    kinds: tuple[tuple[str, Sequence[Sized]], ...] = (
        ("labeled", dataset.labeled),
        ("unlabeled", dataset.unlabeled),
    )
    sets = {
        f"data.{kind}.{name}": each
        for kind, members in kinds
        for name, each in zip(rooted(cfg.data[kind]), members)
    }
    return [*(f"warning: {line}" for line in count_warnings(sets)), *left_out_notes(sets)]


def open_pseudo_labels(
    cfg: DictConfig, teacher: DenseModel, unlabeled: Mapping[str, UnlabeledSet]
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


def build_training_set(cfg: DictConfig, teacher: DenseModel | None = None) -> TrainingSet:
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


def build_loop(cfg: DictConfig, micro_batches: int) -> Loop:
    """The settings of the loop."""
    return Loop(
        micro_batches=micro_batches,
        accumulate=cfg.accumulate,
        seed=cfg.seed,
        warmup_steps=cfg.optimizer.warmup_steps,
        decay_power=cfg.optimizer.decay_power,
        clip_norm=cfg.optimizer.clip_norm,
        log_every=cfg.log_every,
        image_every=cfg.image_every,
        eval_every=cfg.eval_every,
        save_every=cfg.save_every,
    )


def describe(
    parts: Parts,
    dataset: TrainingSet,
    total_steps: int,
    device: torch.device,
    amp: torch.dtype | None,
    processes: int,
) -> str:
    """One line on what is about to happen."""
    step = parts.state.step
    images = f"{dataset.labeled_count} labeled"
    images += f" + {dataset.unlabeled_count} unlabeled" if dataset.unlabeled_count else ""
    number_format = str(amp or torch.float32).removeprefix("torch.")
    begun = f"continuing at step {step} of {total_steps}" if step else f"{total_steps} steps"
    where = f"{device.type} in {number_format}"
    if processes > 1:
        where += f", {processes} processes ({'FSDP' if is_sharded(parts.model) else 'DDP'})"
    return f"{parts.model.encoder.label} on {images} images, {begun}, {where}"


def _plain(cfg: DictConfig) -> dict[str, Any]:
    return {str(key): value for key, value in cfg.items()}
