"""Scores of a model on labeled sets while it trains."""

from collections.abc import Callable, Mapping, Sequence

import torch

from depthany.data.samples import LabeledSet
from depthany.evaluation.fit_problems import FitProblems
from depthany.evaluation.protocol import Protocol
from depthany.evaluation.results import summary
from depthany.evaluation.run import score_set
from depthany.evaluation.score import Row
from depthany.inference.predictor import Predictor
from depthany.metrics.table import DEFAULT_METRICS
from depthany.models.model import DenseModel
from depthany.system.distributed import ALONE, Processes

# Kind of the model's quantity -> quantity and alignment of the protocol.
ALIGNED_AS = {"disparity": "least_squares", "depth_m": "none"}
NEGATIVE_SCALES, CONSTANT_PREDICTIONS, IMAGES = "negative_scales", "constant_predictions", "images"
Scores = dict[str, float]  # of one set: its metrics by name, and the three counts above


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
    say: Callable[[str], object] = lambda line: None,
) -> dict[str, Scores]:
    """Returns the scores of a model on each set, means over its images.

    The image is resized so that its shorter side is `input_size`, and the prediction to the truth bilinearly
    (corners aligned). A disparity is fitted to 1 / depth by least squares per image over the valid pixels,
    clipped to the set's range and inverted; metres are only clipped. Sky counts in neither fit nor metric,
    since it has no depth.

    Args:
        sets: by name. input_size: pixels of the shorter side at the model's input.
        amp: dtype of autocast, or None.
        batch_size: images of equal shape that go through the model together; changes scores by rounding.
        convert_images: accept gray, RGBA, CMYK and 16-bit images.
        processes: that share the images; all call this with the same weights and get the same scores.
        metrics: names in `metrics.table.METRICS`.
        say: called with a warning if many images have a negative scale or a constant prediction.

    Returns:
        By set: the metrics, and the numbers of images that counted (`images`), that were fitted with a
        negative scale (`negative_scales`) and that have a constant prediction (`constant_predictions`).

    Raises:
        ValueError: no image of a set has a valid depth, or the model predicts no depth.
    """
    was_training, align = model.training, _align_of(model)
    predictor = Predictor(model.eval(), input_size, amp=amp)
    scores: dict[str, Scores] = {}
    try:
        for name, dataset in sets.items():
            # What the set calls valid counts, at any distance: a set of unknown scale has no metres.
            range_m, names = (dataset.min_depth, dataset.max_depth), tuple(metrics)
            protocol = Protocol(
                name, align=align, min_depth=None, max_depth=None, clip_prediction=range_m, metrics=names
            )
            scored = score_set(
                predictor,
                dataset,
                protocol,
                batch_size=batch_size,
                convert_images=convert_images,
                processes=processes,
            )
            scores[name] = _scores_of(scored.rows, protocol, len(dataset), say)
    finally:
        model.train(was_training)
    return processes.from_main(scores)  # equal to the last bit even where processors round differently


def _align_of(model: DenseModel) -> str:
    if model.quantity.kind not in ALIGNED_AS:
        raise ValueError(f"the model predicts {model.quantity.describe()}: validation scores depth alone")
    return ALIGNED_AS[model.quantity.kind]


def _scores_of(rows: Sequence[Row], protocol: Protocol, images: int, say: Callable[[str], object]) -> Scores:
    if not rows:
        raise ValueError(f"{protocol.name}: none of {images} images has a valid depth: nothing to evaluate")
    problems = FitProblems.of(rows)
    for line in problems.warnings():
        say(f"warning: {protocol.name}: {line}")
    return summary(rows, protocol) | {
        NEGATIVE_SCALES: len(problems.negative),
        CONSTANT_PREDICTIONS: len(problems.constant),
        IMAGES: problems.images,
    }
