"""What differs between the stages of training: how a batch becomes a loss."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depthany.losses.reduce import MeanOverRanks, on_one_rank


@dataclass(frozen=True)
class View:
    """What a stage saw and predicted, for the pictures in TensorBoard.

    clean, seen: [b 3 h w] uint8, before and after perturbation. target, prediction: [b h w] disparity. mask:
        [b h w].
    """

    clean: Tensor
    seen: Tensor
    target: Tensor
    mask: Tensor
    prediction: Tensor


@dataclass(frozen=True)
class StageOutput:
    """What a micro-batch gives.

    loss: [] to go backward from; a kind of image of which the micro-batch has none adds 0 and no gradient.
    parts: named scalars [] for the log, those of the kinds that are there.
    views: by kind of image, those of this process.

    Where processes share the micro-batch, the means over them of loss, gradients and parts are those of the
    whole.
    """

    loss: Tensor
    parts: dict[str, Tensor]
    views: dict[str, View]


def at_least_one(image: Tensor) -> Tensor:
    """The images [b 3 h w], or a black one in place of none, of whose output nothing is to be taken.

    So the loss of an empty micro-batch has a gradient, 0 everywhere, as the step and fp16's scaler need it,
    and no attention kernel has to cope with an empty batch.
    """
    return image if len(image) else image.new_zeros(1, *image.shape[1:])


def freeze(network: nn.Module) -> nn.Module:
    """The same network without gradients and in eval mode; `StudentStage.train` keeps the mode pinned."""
    return network.requires_grad_(False).eval()


def zero_fraction(disparity: Tensor, mean_over_ranks: MeanOverRanks = on_one_rank) -> Tensor:
    """Share [] of pixels that are exactly 0: near 1 the output ReLU is dead and no gradient flows."""
    zero = disparity.detach() == 0
    return zero.sum() / mean_over_ranks(torch.ones_like(zero).sum()).clamp(min=1e-6)


def trained_parameters(stage: nn.Module) -> list[nn.Parameter]:
    """Parameters of a stage that learn: those of the projection, where there is one."""
    return [parameter for parameter in stage.parameters() if parameter.requires_grad]


def trained_state(stage: nn.Module) -> dict[str, Tensor]:
    """What of a stage belongs into a checkpoint: what it trains, nothing frozen."""
    trained = {name for name, parameter in stage.named_parameters() if parameter.requires_grad}
    return {name: tensor for name, tensor in stage.state_dict().items() if name in trained}
