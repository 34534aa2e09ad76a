"""Score a model on labeled sets."""

from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from depthany.data.dataset import DepthSample, LabeledSet
from depthany.evaluation.align import align_least_squares, disparity_to_depth
from depthany.evaluation.metrics import depth_metrics
from depthany.models.depth_model import DepthModel
from depthany.models.preprocess import preprocess

Scores = dict[str, float]


@torch.no_grad()
def evaluate(
    model: DepthModel,
    sets: Mapping[str, LabeledSet],
    input_size: int,
    device: torch.device,
    amp: torch.dtype | None = None,
    batch_size: int = 8,
    convert_images: bool = False,
) -> dict[str, Scores]:
    """AbsRel and delta1 on each set, mean over its images.

    The image is resized so that its shorter side is `input_size` and both are multiples of 14; the
    prediction goes back to the size of the truth bilinearly (corners aligned), is fitted to 1 / depth by
    least squares per image over the valid pixels, clamped to the set's range and inverted. Sky counts in
    neither fit nor metric: it has no depth.

    Args:
        amp: dtype of autocast, or None.
        batch_size: images of equal shape that go through the model together; does not change the scores.

    Returns:
        Per set: abs_rel, delta1, and `images`, the number that counted.
    """
    was_training = model.training
    model.eval()
    scores = {
        name: _mean_scores(
            _image_scores(model, dataset, input_size, device, amp, batch_size, convert_images), len(dataset)
        )
        for name, dataset in sets.items()
    }
    model.train(was_training)
    return scores


def _image_scores(
    model: DepthModel,
    dataset: LabeledSet,
    input_size: int,
    device: torch.device,
    amp: torch.dtype | None,
    batch_size: int,
    convert_images: bool,
) -> Iterator[Scores]:
    for samples in _equal_shapes(dataset, batch_size, convert_images):
        image = torch.stack([preprocess(sample.image, input_size) for sample in samples]).to(device)
        with torch.autocast(device.type, amp, enabled=amp is not None):
            prediction = model(image)  # [b h w]
        truth = torch.from_numpy(np.stack([sample.disparity for sample in samples])).to(device)
        valid = torch.from_numpy(np.stack([sample.mask for sample in samples])).to(device) & (truth > 0)
        prediction = torch.nn.functional.interpolate(
            prediction[:, None].float(), truth.shape[-2:], mode="bilinear", align_corners=True
        )[:, 0]
        yield from score_batch(prediction, truth, valid, dataset.min_depth, dataset.max_depth)


def score_batch(
    prediction: Tensor, truth: Tensor, valid: Tensor, min_depth: float, max_depth: float
) -> list[Scores]:
    """Scores of each image of a batch; an image without a valid pixel is left out.

    Args:
        prediction, truth: [b h w] disparity. valid: [b h w] bool. min_depth, max_depth: metres.
    """
    scale, shift = align_least_squares(prediction, truth, valid)[:2]
    depth_m = disparity_to_depth(prediction, scale, shift, min_depth, max_depth)
    true_depth_m = 1.0 / torch.where(valid, truth, 1.0)
    metrics = depth_metrics(depth_m, true_depth_m, valid)
    counted = valid.flatten(1).any(1).tolist()
    return [
        {"abs_rel": float(metrics["abs_rel"][i]), "delta1": float(metrics["delta1"][i])}
        for i, counts in enumerate(counted)
        if counts
    ]


def _equal_shapes(dataset: LabeledSet, batch_size: int, convert_images: bool) -> Iterator[list[DepthSample]]:
    """Samples in groups of one shape, in order of their shape's first appearance."""
    waiting: dict[tuple[int, ...], list[DepthSample]] = defaultdict(list)
    for index in range(len(dataset)):
        sample = dataset.read(index, convert_images)
        group = waiting[sample.image.shape]
        group.append(sample)
        if len(group) == batch_size:
            yield waiting.pop(sample.image.shape)
    yield from waiting.values()


def _mean_scores(image_scores: Iterator[Scores], count: int) -> Scores:
    rows = list(image_scores)
    if not rows:
        raise ValueError(f"none of {count} images has a valid depth: nothing to evaluate")
    means = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
    return {**means, "images": len(rows)}
