"""What a segmentation model takes from its labeled sets: the names and colours of the classes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

from depthany.data.class_list import same_classes
from depthany.models.model import DenseModel
from depthany.system.distributed import Processes
from depthany.system.plurals import counted
from depthany.training.checks import per_micro_batch, rooted
from depthany.training.settings import TrainSettings
from depthany.training.stages.table import STAGES
from depthany.training.starting_weights import require_chosen_head

NAMES, COLOURS = "class_names", "class_colours"  # arguments of heads of classes
FEW_IMAGES = 8  # in a process; BatchNorm's statistics of fewer are poor


def learns_classes(settings: TrainSettings) -> bool:
    """Whether the stage learns classes."""
    return STAGES[settings.stage.name].predicts == "classes"


def with_class_head(settings: TrainSettings, labeled: Sequence[Any]) -> TrainSettings:
    """Returns the settings with the classes of the labeled sets in a head that leaves them open.

    Args:
        labeled: the labeled sets that have a root, in their order.

    Raises:
        ValueError: the sets differ in their classes, or the head names others.
    """
    head = dict(settings.model.head)
    if not learns_classes(settings) or not labeled or NAMES not in head:
        return settings
    names, colours = same_classes(_named(settings, labeled))
    if head[NAMES] is not None and tuple(head[NAMES]) != names:
        raise ValueError(
            f"model.head.class_names={list(head[NAMES])} are not the classes of the labeled sets, "
            f"{', '.join(names)}: leave them null"
        )
    head[NAMES] = list(names)
    if head.get(COLOURS) is None:
        head[COLOURS] = [list(colour) for colour in colours]
    return replace(settings, model=replace(settings.model, head=head))


def require_class_head(model: DenseModel, settings: TrainSettings, labeled: Sequence[Any]) -> None:
    """Raises ValueError if the head came with `model.init` and is of another kind, or has other classes."""
    if not learns_classes(settings) or not labeled:
        return
    require_chosen_head(model, settings.model.head, settings.model.init, "encoder")
    names, _ = same_classes(_named(settings, labeled))
    if model.quantity.class_names != names:
        raise ValueError(
            f"the head of model.init={settings.model.init} has {len(model.quantity.class_names)} classes, "
            f"but the labeled sets have {len(names)}, or others: start a new head by model.init_parts=encoder"
        )


def require_same_classes(settings: TrainSettings, sets: Mapping[str, Any]) -> None:
    """Raises ValueError if sets, those of validation included, are not masks or differ in their classes."""
    if not learns_classes(settings):
        return
    for name, images in sets.items():
        if getattr(images, "unit", "m") != "class":
            raise ValueError(
                f"{name}: its labels are not classes, but stage={settings.stage.name} is scored on classes: "
                f"choose data=sample_classes or data=folder_classes, or leave it out: {name}.root=null"
            )
    same_classes(sets)


def norm_notes(settings: TrainSettings, model: DenseModel, processes: Processes) -> list[str]:
    """Returns a warning if BatchNorm in the encoder, or after a global pooling, learns from few images.

    Raises:
        ValueError: the head cannot be trained with so few images at a time.
    """
    if not learns_classes(settings) or getattr(settings.stage, "batch_norm", "") == "frozen":
        return []
    trained = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    images = per_micro_batch(settings)[0] // processes.size
    if trained and images < model.head.least_images:
        raise ValueError(
            f"batch_size={settings.batch_size} gives BatchNorm {images} image at a time, but after a global "
            f"pooling the head needs {model.head.least_images}: raise batch_size, lower accumulate, or set "
            "stage.batch_norm=frozen"
        )
    in_encoder = any(isinstance(m, _BatchNorm) and m.training for m in model.encoder.modules())
    if trained and images < FEW_IMAGES and (model.head.least_images > 1 or in_encoder):
        return [
            f"warning: BatchNorm takes its statistics over {counted(images, 'image')} at a time; "
            "with fewer than "
            f"{FEW_IMAGES} they are poor: raise batch_size, or set stage.batch_norm=frozen"
        ]
    return []


def starting_line(settings: TrainSettings) -> list[str]:
    """Returns a line on where the encoder of a segmentation model starts from, if from no trained model."""
    model = settings.model
    if not learns_classes(settings) or model.init is not None:
        return []
    weights = (model.weights or "its published weights") if model.pretrained else "random weights"
    return [f"the encoder starts from {weights}; model.init=outputs/student starts from a trained model"]


def _named(settings: TrainSettings, labeled: Sequence[Any]) -> dict[str, Any]:
    return {f"data.labeled.{name}": images for name, images in zip(rooted(settings.data.labeled), labeled)}
