"""Score a model on labeled sets while it is trained: AbsRel and delta1 as Depth Anything is evaluated."""

from collections.abc import Mapping

import torch

from depthany.data.samples import LabeledSet
from depthany.evaluation.protocol import Protocol
from depthany.evaluation.run import score_set
from depthany.inference.predictor import Predictor
from depthany.models.model import DenseModel
from depthany.system.distributed import ALONE, Processes

Scores = dict[str, float]


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
) -> dict[str, Scores]:
    """AbsRel and delta1 on each set, mean over its images.

    The image is resized so that its shorter side is `input_size` and both are multiples of 14; the
    prediction goes back to the size of the truth bilinearly (corners aligned), is fitted to 1 / depth by
    least squares per image over the valid pixels, clamped to the set's range and inverted. Sky counts in
    neither fit nor metric: it has no depth.

    Args:
        amp: dtype of autocast, or None.
        batch_size: images of equal shape that go through the model together; changes the scores by
            rounding alone.
        processes: that share the images: all of them call this with the same weights.

    Returns:
        Per set: abs_rel, delta1, and `images`, the number that counted. All processes get the same, to the
        bit that of one.
    """
    was_training = model.training
    predictor = Predictor(model.eval(), input_size, amp=amp)
    try:
        return {
            name: _scores(predictor, dataset, name, batch_size, convert_images, processes)
            for name, dataset in sets.items()
        }
    finally:
        model.train(was_training)


def _scores(
    predictor: Predictor,
    dataset: LabeledSet,
    name: str,
    batch_size: int,
    convert_images: bool,
    processes: Processes,
) -> Scores:
    # What the set itself calls valid counts, whatever its distance: a set of unknown scale has no metres.
    range_m = (dataset.min_depth, dataset.max_depth)
    protocol = Protocol(name, min_depth=None, max_depth=None, clip_prediction=range_m)
    rows = score_set(
        predictor,
        dataset,
        protocol,
        batch_size=batch_size,
        convert_images=convert_images,
        processes=processes,
    ).rows
    if not rows:
        raise ValueError(f"none of {len(dataset)} images has a valid depth: nothing to evaluate")
    means = {key: sum(row.scores[key] for row in rows) / len(rows) for key in ("abs_rel", "delta1")}
    return {**means, "images": len(rows)}
