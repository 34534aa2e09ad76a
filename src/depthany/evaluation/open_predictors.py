"""Opens what is scored: trained models, and folders of predictions."""

from collections.abc import Sequence
from pathlib import Path

from depthany.evaluation.predictors import FolderPredictor, ModelPredictor, Predictor, holds_predictions
from depthany.inference.ready_model import load_ready_model
from depthany.system.device import Compute


def open_predictors(
    paths: Sequence[str],
    quantities: Sequence[str],
    compute: Compute,
    stored_per_unit: float | None = None,
    taps: str | None = None,
    max_depth_m: float | None = None,
) -> list[Predictor]:
    """Opens all of them before anything is scored, so that a wrong path is found first.

    Args:
        paths: model files and folders of predictions.
        quantities: of the folders of predictions, in their order; a single one is that of all.
        stored_per_unit: see `FolderPredictor`.
        taps, max_depth_m: see `load_model`.

    Raises:
        ValueError: a model cannot be loaded, or `quantities` does not fit the folders.
    """
    folders = [path for path in paths if holds_predictions(Path(path))]
    quantity_of = _quantities(quantities, folders)
    predictors: list[Predictor] = []
    for path, label in zip(paths, labels_of(paths), strict=True):
        if path in folders:
            about = {"source": path, "quantity": quantity_of[path]}
            predictors.append(FolderPredictor(Path(path), quantity_of[path], stored_per_unit, label, about))
        else:
            predictors.append(_open_model(path, label, compute, taps, max_depth_m))
    return predictors


def _open_model(
    path: str, label: str, compute: Compute, taps: str | None, max_depth_m: float | None
) -> ModelPredictor:
    model, sha256 = load_ready_model(path, compute, taps, max_depth_m, hash_weights=True)
    quantity = "disparity" if model.quantity.larger_is_nearer else "depth"
    about = {"source": path, "quantity": quantity, "model": model.config, "weights_sha256": sha256}
    return ModelPredictor(model, model.input_size, compute.device, quantity, None, label, about)


def _quantities(given: Sequence[str], folders: Sequence[str]) -> dict[str, str]:
    """Returns the quantity of each folder of predictions."""
    named = f"quantity={','.join(given)}"
    if not folders:
        if given:
            raise ValueError(f"{named} is for folders of predictions, and no checkpoint is one")
        return {}
    if not given:
        raise ValueError(
            f"{folders[0]} is a folder of predictions: pass quantity=disparity (larger is nearer) or "
            "quantity=depth"
        )
    given = [*given] * len(folders) if len(given) == 1 else given
    if len(given) != len(folders):
        raise ValueError(f"{named} names {len(given)} quantities, and there are {len(folders)} folders")
    return dict(zip(folders, given))


def labels_of(paths: Sequence[str]) -> list[str]:
    """Returns the last parts of each path, as many as make the labels differ."""
    parts = [Path(path).parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(each[-length:]) for each in parts]
        if len(set(labels)) == len(labels):
            return labels
    return list(paths)
