"""The contract of an encoder: four levels of features from an image."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from depthany.models.preprocess import Preprocessing

Four = tuple[int, int, int, int]


class Encoder(nn.Module):
    """Base class of the encoders. `forward(image)` returns four levels [b c p q], shallowest first.

    The last level is the one that feature alignment compares (`patch_tokens`). A subclass sets the attributes
    below, stores its constructor arguments in `config`, and is a row of `depthany.models.tables.ENCODERS`.

    Attributes:
        label: short name for messages, such as "vits".
        config: constructor arguments as plain values.
        widths: channels of the four levels.
        strides: pixels per cell of the four levels: (14, 14, 14, 14) for DINOv2, (4, 8, 16, 32) for a CNN.
        preprocessing: the image size and normalisation that the encoder expects.
        dpt_widths: default widths of a DPT decoder: channels of the fusion path, and of the four levels.
        blocks: modules that FSDP shards one by one.
        activation_checkpointing: keep only the input of each block for the backward pass and recompute the
            rest there: the same gradients, less memory, more time.
    """

    label: str
    config: dict[str, Any]
    widths: Four
    strides: Four
    preprocessing: Preprocessing
    dpt_widths: tuple[int, Four]
    blocks: Iterable[nn.Module]
    activation_checkpointing: bool

    def forward(self, image: Tensor) -> list[Tensor]:
        """Returns four levels [b c p q] of a normalised image [b 3 h w], shallowest first."""
        raise NotImplementedError(f"{type(self).__name__}.forward")


def patch_tokens(level: Tensor) -> Tensor:
    """Returns a level [b c p q] as tokens [b p*q c], row by row."""
    return level.flatten(2).transpose(1, 2)
