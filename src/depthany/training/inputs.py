"""What a run notes of what it learns from, so that it does not continue with something else there."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from depthany.data.dataset import TrainingSet
from depthany.data.identity import identity
from depthany.data.sampler import MixedBatches
from depthany.models.files.model_source import ModelSource
from depthany.models.files.weights import encoder_file_sha256
from depthany.system.distributed import Processes
from depthany.training.build import read_class_lists
from depthany.training.changes import CLASSES, COUNTS, NAMES, WEIGHTS
from depthany.training.checks import rooted
from depthany.training.class_model import learns_classes
from depthany.training.settings import TrainSettings
from depthany.training.stages.table import STAGES


def saved_settings(
    settings: TrainSettings, sampler: MixedBatches, dataset: TrainingSet, processes: Processes
) -> dict[str, Any]:
    """Returns the settings with counts and names of the images, on which the order of training depends, and
    with the classes and weights that are learned from. All ranks call it together.
    """
    labeled, unlabeled = sampler.counts
    names = {
        "labeled": dict(zip(rooted(settings.data.labeled), map(identity, dataset.labeled))),
        "unlabeled": dict(zip(rooted(settings.data.unlabeled), map(identity, dataset.unlabeled))),
    }
    found = {
        CLASSES: _classes(settings, dataset.labeled),
        WEIGHTS: processes.on_main(partial(hash_weights, settings)),
    }
    counts = {COUNTS: {"labeled": labeled, "unlabeled": unlabeled}, NAMES: names}
    return asdict(settings) | counts | {key: value for key, value in found.items() if value}


def settings_without_data(settings: TrainSettings) -> dict[str, Any]:
    """Returns those of `saved_settings` that are known without a look at images, and without a network."""
    lists = read_class_lists(settings) if learns_classes(settings) else {}
    found = {
        CLASSES: {name: classes.stored_as() for name, classes in lists.items()},
        WEIGHTS: hash_weights(settings, local=True),
    }
    return asdict(settings) | found


def hash_weights(settings: TrainSettings, local: bool = False) -> dict[str, str]:
    """Returns a hash of the trained weights that each setting names, by its key: teacher, start, encoders.

    It is of names, types and values of the tensors. So it stays the same if a file is copied or written again
    with other metadata, and reading takes no longer than the hash itself. Published weights that no setting
    names have none.

    Args:
        local: leave out what is not here, or cannot be read: a finished run no longer needs it.
    """
    stage, model = STAGES[settings.stage.name], settings.model
    sources = {"stage.teacher": settings.stage.teacher} if stage.needs.teacher else {}
    if model.init is not None:
        sources["model.init"] = model.init
    named = {key: ModelSource.of(key, value) for key, value in sources.items()}
    files = {f"stage.{key}": path for key, path in stage.weights_files(settings.stage).items()}
    if model.pretrained and model.init is None and model.weights is not None:
        files["model.weights"] = model.weights
    hashes: dict[str, Callable[[], str]] = {key: each.weights_sha256 for key, each in named.items()}
    hashes |= {key: partial(encoder_file_sha256, path) for key, path in files.items()}
    there = {key: each.exists for key, each in named.items()}
    there |= {key: Path(path).exists() for key, path in files.items()}
    found = dict[str, str]()
    for key, compute in hashes.items():
        try:
            if there[key] or not local:
                found[key] = compute()
        except (OSError, ValueError):  # such as the folder of a teacher that trains again
            if not local:
                raise
    return found


def _classes(settings: TrainSettings, labeled: Sequence[Any]) -> dict[str, Any]:
    """Returns classes and stored values of each labeled set, where the stage learns them."""
    if not learns_classes(settings):
        return {}
    return {name: each.classes.stored_as() for name, each in zip(rooted(settings.data.labeled), labeled)}
