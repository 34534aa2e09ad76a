"""The pseudo-labels of a run, if they were stored beforehand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from depthany.data.pseudo_labels.store import RESIZE, PseudoLabels, describe_sets, differences, read_manifest
from depthany.data.samples import UnlabeledSet
from depthany.data.transforms import crop_shape
from depthany.models.files.weights import weights_sha256
from depthany.models.model import DenseModel
from depthany.training.settings import ONLINE, TrainSettings


def open_pseudo_labels(
    settings: TrainSettings, teacher: DenseModel, unlabeled: Mapping[str, UnlabeledSet]
) -> PseudoLabels | None:
    """Opens the store of pseudo-labels; returns None where the teacher labels during training.

    Raises:
        ValueError: the store is not complete, or of another teacher, input size or image set; each difference
            is named.
    """
    if settings.pseudo_labels == ONLINE:
        return None
    store = Path(settings.pseudo_labels)
    header, manifest = read_manifest(store)
    sets = describe_sets(unlabeled)
    expected: dict[str, dict[str, Any]] = {
        "teacher": {"weights_sha256": weights_sha256(teacher)},
        "preprocessing": {"input_size": min(crop_shape(settings.crop_size)), "resize": RESIZE},
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
