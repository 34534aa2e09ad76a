"""Scores of a model on labeled sets while it trains."""

from collections.abc import Callable, Mapping, Sequence

import torch

from depthany.data.samples import LabeledSet
from depthany.evaluation.fit_problems import FitProblems
from depthany.evaluation.predictors import ModelPredictor
from depthany.evaluation.protocol import Protocol
from depthany.evaluation.results import summary
from depthany.evaluation.run import score_set
from depthany.metrics.table import DEFAULT_METRICS, METRICS
from depthany.models.model import DenseModel
from depthany.system.distributed import ALONE, Processes

NEGATIVE_SCALES, CONSTANT_PREDICTIONS, IMAGES = "negative_scales", "constant_predictions", "images"
Scores = dict[str, float]  # of one set: its metrics by name, and the three counts above


@torch.no_grad()
def evaluate(
    model: DenseModel,
    sets: Mapping[str, LabeledSet],
    input_size: int,
    device: torch.device,
    amp: torch.dtype | None = None,
    batch_size: int = 8,
    convert_images: bool = False,
    processes: Processes = ALONE,
    metrics: Sequence[str] = DEFAULT_METRICS["depth"],
    say: Callable[[str], object] = lambda line: None,
) -> dict[str, Scores]:
    """Returns the scores of a model on each set, means over its images.

    The image is resized so that its shorter side is `input_size` and both are multiples of the patch; the
    prediction is resized to the truth bilinearly (corners aligned), fitted to 1 / depth by least squares per
    image over the valid pixels, clipped to the set's range and inverted. Sky counts in neither fit nor
    metric, since it has no depth.

    Args:
        amp: dtype of autocast, or None.
        batch_size: images of equal shape that go through the model together; changes the scores by
            rounding alone.
        convert_images: accept gray, RGBA, CMYK and 16-bit images.
        processes: that share the images; all of them call this with the same weights, and all get the same
            scores.
        metrics: names in `metrics.table.METRICS`.
        say: called with a warning where many images are fitted with a negative scale, or have a constant
            prediction.

    Returns:
        By set: the metrics, and the numbers of images that counted (`images`), that were fitted with a
        negative scale (`negative_scales`) and that have a constant prediction (`constant_predictions`).

    Raises:
        ValueError: no image of a set has a valid depth.
    """
    was_training = model.training
    predictor = ModelPredictor(model.eval(), input_size, device, amp=amp)
    scores: dict[str, Scores] = {}
    try:
        for name, dataset in sets.items():
            # What the set calls valid counts, at any distance: a set of unknown scale has no metres.
            range_m = (dataset.min_depth, dataset.max_depth)
            protocol = Protocol(
                name, min_depth=None, max_depth=None, clip_prediction=range_m, metrics=tuple(metrics)
            )
            rows = score_set(
                predictor,
                dataset,
                protocol,
                batch_size=batch_size,
                convert_images=convert_images,
                processes=processes,
            ).rows
            if not rows:
                raise ValueError(
                    f"{name}: none of {len(dataset)} images has a valid depth: nothing to evaluate"
                )
            problems = FitProblems.of(rows)
            for line in problems.warnings():
                say(f"warning: {name}: {line}")
            scores[name] = summary(rows, protocol) | {
                NEGATIVE_SCALES: len(problems.negative),
                CONSTANT_PREDICTIONS: len(problems.constant),
                IMAGES: problems.images,
            }
    finally:
        model.train(was_training)
    return processes.from_main(scores)  # equal to the last bit even where processors round differently


def scalars_of(scores: Mapping[str, Scores]) -> dict[str, float]:
    """Returns scores by set as val/<set>/<name>, for TensorBoard and metrics.jsonl."""
    return {
        f"val/{set_name}/{name}": value
        for set_name, values in scores.items()
        for name, value in values.items()
        if name in METRICS or name in (NEGATIVE_SCALES, CONSTANT_PREDICTIONS)
    }
