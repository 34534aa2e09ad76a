"""Scores of a model on labeled sets while it trains."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from depthany.data.dataset import TrainingSet
from depthany.data.left_out import require_few
from depthany.data.samples import LabeledSet
from depthany.evaluation.class_scores import class_table, confusion_of
from depthany.evaluation.fit_problems import FitProblems, shown
from depthany.evaluation.protocol import Protocol
from depthany.evaluation.results import summary
from depthany.evaluation.run import Scored, UnreadableImage, score_set
from depthany.inference.canonical import canonical
from depthany.inference.predictor import Predictor
from depthany.metrics.table import DEFAULT_METRICS
from depthany.models.model import DenseModel
from depthany.models.output import Quantity
from depthany.system.distributed import ALONE, Processes
from depthany.training.examples import Examples
from depthany.training.stages.base import Stage

# Kind of the model's quantity -> quantity and alignment of the protocol.
ALIGNED_AS = {"disparity": "least_squares", "depth_m": "none", "classes": "none"}
NEGATIVE_SCALES, CONSTANT_PREDICTIONS, IMAGES = "negative_scales", "constant_predictions", "images"
IOU = "iou/"  # before the name of a class
DEGENERATE, UNREADABLE = "degenerate_truths", "unreadable"
Scores = dict[str, float]  # of one set: its metrics by name, and the five counts above
SKIP_HINT = "(data.unreadable=skip leaves such images out)"


@torch.no_grad()
def evaluate(
    model: DenseModel,
    sets: Mapping[str, LabeledSet],
    input_size: int,
    amp: torch.dtype | None = None,
    batch_size: int = 8,
    convert_images: bool = False,
    processes: Processes = ALONE,
    metrics: Sequence[str] = DEFAULT_METRICS["depth"],
    max_unreadable_share: float | None = None,
    say: Callable[[str], object] = lambda line: None,
    canonical_focal: float | None = None,
    eval_size: tuple[int, int] | None = None,
    window: int | None = None,
    stride: int | None = None,
    pictures: Examples | None = None,
) -> dict[str, Scores]:
    """Returns the scores of a model on each set, means over its images.

    The prediction is resized to the ground truth bilinearly (corners aligned). A disparity is fitted to
    1 / depth by least squares per image over the valid pixels, clipped to the set's range and inverted;
    metres are only clipped. Sky counts in neither fit nor metric, since it has no depth; only in metrics over
    maps, such as boundary_f1, it has the farthest depth of the set's range.

    Args:
        sets: sets by name. input_size: pixels of the shorter side at the model's input.
        amp: dtype of autocast, or None.
        batch_size: images of equal shape that go through the model together; changes scores by rounding.
        convert_images: accept gray, RGBA, CMYK and 16-bit images.
        processes: share the images; all call this with the same weights and get the same scores.
        metrics: names in `metrics.table.METRICS`.
        max_unreadable_share: leave out images that cannot be read, as long as they are at most this share of
            a set; None = none may be unreadable.
        say: takes a warning if images are left out, or many have a negative scale or constant prediction.
        canonical_focal: `focal_px` of `CanonicalPredictor`; None = predictions are metres of any camera.
        eval_size: height and width to which images are stretched, in place of `input_size`; None = their
            aspect is kept.
        window, stride: for a model of classes, see `Predictor`.
        pictures: draws each set; None = no pictures.

    Returns:
        By set: the metrics, and the numbers of images that counted (`images`), have a negative scale
        (`negative_scales`) or a constant prediction (`constant_predictions`), or were left out, as
        their ground truth says nothing (`degenerate_truths`) or as they cannot be read (`unreadable`). For
        classes: the metrics, the IoU of each class that is not absent (`iou/<name>`), `images` and
        `unreadable`.

    Raises:
        ValueError: an image, or too many, cannot be read; a set has no valid depth; the model predicts none.
    """
    was_training, align = model.training, alignment_of(model.quantity)
    predictor = Predictor(model.eval(), input_size, amp=amp, window=window, stride=stride)
    scores: dict[str, Scores] = {}
    try:
        for name, dataset in sets.items():
            scores[name] = _score(
                predictor if canonical_focal is None else _at_camera(predictor, dataset, canonical_focal),
                dataset,
                protocol_of(name, dataset, align, metrics, eval_size),
                max_unreadable_share,
                say,
                pictures if processes.is_main else None,
                batch_size=batch_size,
                convert_images=convert_images,
                processes=processes,
            )
    finally:
        model.train(was_training)
    return processes.from_main(scores)  # equal to the last bit even where processors round differently


def metrics_of(stage: Stage, more: Sequence[str] = ()) -> tuple[str, ...]:
    """Returns the metrics of a validation, each once: the usual ones, the stage's own, and `more`."""
    task = "classes" if stage.predicts == "classes" else "depth"
    return tuple(dict.fromkeys((*DEFAULT_METRICS[task], stage.primary, *more)))


def input_of_validation(dataset: TrainingSet) -> dict[str, Any]:
    """Returns the arguments of `evaluate` that make a model see validation images as it sees training ones.

    What `stage.views` cuts, turns and recolours is left out.
    """
    stretched = dataset.options.keeps_label_size
    return {
        "input_size": min(dataset.crop_hw),
        "eval_size": dataset.crop_hw if stretched else None,
        "canonical_focal": dataset.options.focal_px,
    }


def _score(
    predictor: Predictor,
    dataset: LabeledSet,
    protocol: Protocol,
    max_unreadable_share: float | None,
    say: Callable[[str], object],
    pictures: Examples | None,
    **options: Any,
) -> Scores:
    """Returns the scores of one set; `options` are those of `score_set`."""
    skip = max_unreadable_share is not None
    try:
        scored = score_set(predictor, dataset, protocol, skip_unreadable=skip, **options)
    except UnreadableImage as error:
        raise ValueError(f"{protocol.name}: {error} {SKIP_HINT}") from None
    if pictures is not None:
        pictures.draw(scored, predictor, dataset, protocol)
    if protocol.task == "classes":
        names = tuple(dataset.classes.names)  # type: ignore[attr-defined]
        return _scores_of_classes(scored, protocol, len(dataset), max_unreadable_share or 0.0, say, names)
    return _scores_of(scored, protocol, len(dataset), max_unreadable_share or 0.0, say)


def _at_camera(predictor: Predictor, dataset: Any, focal_px: float) -> Predictor:
    """Returns the predictor for the camera of a set, which must be known."""
    focal = getattr(dataset, "focal", None)
    assert focal is not None, "metric_model.require_cameras lets no other set in"
    return canonical(predictor, focal_px, focal, getattr(dataset, "focal_width", None))


def alignment_of(quantity: Quantity) -> str:
    """Returns how a prediction of this quantity is aligned; raises ValueError for one that is not depth."""
    if quantity.kind not in ALIGNED_AS:
        raise ValueError(f"the model predicts {quantity.describe()}: validation scores only depth")
    return ALIGNED_AS[quantity.kind]


def protocol_of(
    name: str,
    dataset: LabeledSet,
    align: str,
    metrics: Sequence[str],
    eval_size: tuple[int, int] | None = None,
) -> Protocol:
    """Returns how a set is scored: every pixel that it calls valid counts, at any distance.

    A set of unknown scale has no metres; predictions are clipped to the range of the set.
    """
    if getattr(dataset, "unit", "m") == "class":
        return Protocol(name, task="classes", align="none", eval_size=eval_size, metrics=tuple(metrics))
    return Protocol(
        name,
        align=align,
        min_depth=None,
        max_depth=None,
        clip_prediction=(dataset.min_depth, dataset.max_depth),
        eval_size=eval_size,
        keep_aspect=eval_size is None,
        metrics=tuple(metrics),
    )


def _scores_of(
    scored: Scored, protocol: Protocol, images: int, max_share: float, say: Callable[[str], object]
) -> Scores:
    name, unreadable, degenerate = protocol.name, scored.unreadable, scored.degenerate
    _report_unreadable(name, unreadable, images, max_share, say)
    if degenerate:
        say(
            f"warning: {name}: {len(degenerate)} of {images} images left out, as their ground truth is "
            f"constant or has too few pixels: {shown(degenerate)}"
        )
    if not scored.rows:
        raise ValueError(nothing_to_evaluate(name, images))
    problems = FitProblems.of(scored.rows)
    for line in problems.warnings():
        say(f"warning: {name}: {line}")
    return summary(scored.rows, protocol) | {
        NEGATIVE_SCALES: len(problems.negative),
        CONSTANT_PREDICTIONS: len(problems.constant),
        DEGENERATE: len(degenerate),
        UNREADABLE: len(unreadable),
        IMAGES: problems.images,
    }


def _scores_of_classes(
    scored: Scored,
    protocol: Protocol,
    images: int,
    max_share: float,
    say: Callable[[str], object],
    names: Sequence[str],
) -> Scores:
    """Returns the scores of a set of masks: the metrics, and the IoU of each class."""
    name, unreadable = protocol.name, scored.unreadable
    _report_unreadable(name, unreadable, images, max_share, say)
    if not scored.rows:
        raise ValueError(f"{name}: none of {images} masks has a pixel that counts: leave it out of data.val")
    confusion = confusion_of(scored.rows, len(names))
    of_class = {f"{IOU}{each.name}": each.iou for each in class_table(confusion, names)}
    return (
        summary(scored.rows, protocol)
        | {key: value for key, value in of_class.items() if value is not None}
        | {UNREADABLE: len(unreadable), IMAGES: len(scored.rows)}
    )


def _report_unreadable(
    name: str, unreadable: Sequence[str], images: int, max_share: float, say: Callable[[str], object]
) -> None:
    """Says which images were left out; raises ValueError if they are too many."""
    if unreadable:
        require_few(len(unreadable), images, max_share, f"{name} (validation)", first_lines(unreadable))
        say(f"warning: {name}: {len(unreadable)} of {images} images left out: {first_lines(unreadable)}")


def is_dead(scores: Scores) -> bool:
    """Whether every prediction of a set is constant."""
    return 0 < scores.get(IMAGES, 0) == scores.get(CONSTANT_PREDICTIONS, 0)


def nothing_to_evaluate(name: str, images: int) -> str:
    """Returns the message of a set without an image that can be scored."""
    return (
        f"{name}: none of {images} images has a valid depth that varies: nothing to evaluate; correct the "
        "set, or leave it out of data.val"
    )


def first_lines(lines: Sequence[str], count: int = 3) -> str:
    """Returns the first lines in one, and dots for the others."""
    return "; ".join(lines[:count]) + ("; ..." if len(lines) > count else "")
