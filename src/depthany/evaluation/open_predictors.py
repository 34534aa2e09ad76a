"""Opens what is scored: trained models, and folders of predictions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from depthany.evaluation.predictors import (
    QUANTITIES,
    FolderPredictor,
    ScoredPredictor,
    holds_predictions,
    space_of,
)
from depthany.inference.predictor import Predictor
from depthany.inference.ready_model import load_ready_model
from depthany.models.files.model_source import ModelSource
from depthany.system.device import Compute


def open_predictors(
    sources: Sequence[ModelSource],
    quantities: Sequence[str],
    compute: Compute,
    stored_per_unit: float | None = None,
) -> tuple[list[ScoredPredictor], dict[str, dict[str, Any]]]:
    """Opens all of them before anything is scored, so that a wrong path is found first.

    Args:
        sources: models, and folders of predictions.
        quantities: quantities of the folders of predictions, in their order; a single one holds for all.
        stored_per_unit: see `FolderPredictor`.

    Returns:
        The predictors, and what results.json says of each one, by label.

    Raises:
        ValueError: a model cannot be loaded, or `quantities` does not fit the folders.
    """
    paths = [each.source for each in sources]
    folders = [path for path in paths if holds_predictions(Path(path))]
    quantity_of = _quantities(quantities, folders)
    predictors: list[ScoredPredictor] = []
    about: dict[str, dict[str, Any]] = {}
    for source, path, label in zip(sources, paths, labels_of(paths), strict=True):
        more: dict[str, Any] = {}
        if path in folders:
            quantity = QUANTITIES[quantity_of[path]]
            predictors.append(FolderPredictor(Path(path), quantity, stored_per_unit, label))
        else:
            model, sha256 = load_ready_model(source, compute, hash_weights=True)
            predictors.append(Predictor(model, model.input_size, label=label))
            more = {"model": model.config, "weights_sha256": sha256}
        about[label] = {"source": path, "quantity": space_of(predictors[-1]), **more}
    return predictors, about


def _quantities(given: Sequence[str], folders: Sequence[str]) -> dict[str, str]:
    """Returns the quantity of each folder of predictions."""
    named = f"quantity={','.join(given)}"
    if not folders:
        if given:
            raise ValueError(f"{named} is for folders of predictions, but no checkpoint is one")
        return {}
    if not given:
        raise ValueError(
            f"{folders[0]} is a folder of predictions: pass quantity=disparity (larger is nearer) or "
            "quantity=depth"
        )
    given = [*given] * len(folders) if len(given) == 1 else given
    if len(given) != len(folders):
        raise ValueError(f"{named} names {len(given)} quantities, but there are {len(folders)} folders")
    return dict(zip(folders, given))


def labels_of(paths: Sequence[str]) -> list[str]:
    """Returns the last parts of each path, as many as make the labels differ."""
    parts = [Path(path).parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(each[-length:]) for each in parts]
        if len(set(labels)) == len(labels):
            return labels
    return list(paths)
