"""Loads a trained model ready for inference: the same lines for every command that uses one."""

from typing import NamedTuple

from depthany.models.fast import prepare_for_inference
from depthany.models.files.model_source import ModelSource
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


def load_ready_model(source: ModelSource, compute: Compute, hash_weights: bool = False) -> ReadyModel:
    """Returns the model that a setting names, prepared for inference.

    Args:
        hash_weights: identify the weights by a hash, which takes seconds for a large model.

    Raises:
        ValueError, OSError: the model cannot be loaded, see `load_model`.
    """
    model = source.load(compute.device)
    digest = weights_sha256(model) if hash_weights else ""  # preparing changes the weights
    return ReadyModel(prepare_for_inference(model, compute.dtype), digest)
