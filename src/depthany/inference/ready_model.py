"""Loads a trained model ready for inference: the same lines for every command that uses one."""

from pathlib import Path
from typing import NamedTuple

from depthany.models.fast import prepare_for_inference
from depthany.models.files.loading import load_model
from depthany.models.files.weights import weights_sha256
from depthany.models.model import DenseModel
from depthany.system.device import Compute


class ReadyModel(NamedTuple):
    """A model on its device, in eval mode, prepared for inference: it cannot be trained or saved any more.

    Attributes:
        model: computes in `Compute.dtype`.
        weights_sha256: hash of the weights as they were stored; "" where it was not asked for.
    """

    model: DenseModel
    weights_sha256: str


def load_ready_model(
    checkpoint: str | Path,
    compute: Compute,
    taps: str | None = None,
    max_depth_m: float | None = None,
    hash_weights: bool = False,
) -> ReadyModel:
    """Returns the model of a checkpoint, prepared for inference.

    Args:
        checkpoint, taps, max_depth_m: see `load_model`, which also says what is raised.
        hash_weights: identify the weights by a hash, which takes seconds for a large model.
    """
    model = load_model(checkpoint, compute.device, taps, max_depth_m)
    digest = weights_sha256(model) if hash_weights else ""  # preparing changes the weights
    return ReadyModel(prepare_for_inference(model, compute.dtype), digest)
