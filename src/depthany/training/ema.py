"""The exponential moving average (EMA) of a model's weights, which is scored and saved in their place."""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from depthany.models.model import DenseModel
from depthany.system.rules import setting
from depthany.training.parallel import is_sharded, unsharded, unsharded_tensors


@dataclass
class EmaSettings:
    """The group `ema` of configs/train.yaml."""

    decay: float | None = setting(None, least=0, below=1)
    warmup: bool = setting(True)


class WeightAverage:
    """The average of the weights and buffers of a model that learns; it starts as a copy of them.

    What is frozen has no average, since it does not change. An average is computed where its weights are: on
    a GPU without waiting for it, and under FSDP2 each rank averages its own shards.

    Attributes:
        tensors: the averages, of the shapes and shardings of the weights, by their names in the model.
    """

    def __init__(self, model: DenseModel, settings: EmaSettings) -> None:
        self.settings = settings
        frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
        self.tensors = {
            name: tensor.detach().clone() for name, tensor in model.state_dict().items() if name not in frozen
        }

    def describe(self) -> str:
        """Returns in words which weights these are."""
        return f"averaged over the steps (ema.decay={self.settings.decay:g})"

    @torch.no_grad()
    def update(self, model: DenseModel, step: int) -> None:
        """Moves the averages towards the weights as they are after optimizer step `step`, from 1.

        Counters, such as BatchNorm's of its batches, are copied.
        """
        now = model.state_dict()
        pairs = [(_local(average), _local(now[name])) for name, average in self.tensors.items()]
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        averages, weights = (list(tensors) for tensors in zip(*floating))
        get_ema_multi_avg_fn(decay_after(step, self.settings))(averages, weights, None)
        for average, counter in pairs:
            if not average.is_floating_point():
                average.copy_(counter)

    def averaged(self, model: DenseModel) -> DenseModel:
        """Returns a copy of the model with the averages as its weights, which one process can use.

        All ranks call it together.
        """
        copy = unsharded(model) if is_sharded(model) else deepcopy(model)
        copy.load_state_dict(unsharded_tensors(self.tensors), strict=False)  # what is frozen is there
        return copy


def decay_after(step: int, settings: EmaSettings) -> float:
    """Returns the share of the average that is kept in its update after optimizer step `step`, from 1.

    With `warmup` it is min(decay, (1 + step) / (10 + step)), so that the first weights, which are random, are
    soon forgotten. Source: `num_updates` of TensorFlow's ExponentialMovingAverage.
    """
    assert settings.decay is not None
    return min(settings.decay, (1 + step) / (10 + step)) if settings.warmup else settings.decay


def _local(tensor: Tensor) -> Tensor:
    """Returns this rank's part of a tensor, which shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
