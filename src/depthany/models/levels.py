"""No decoder: the encoder's levels go to the head as they are."""

from typing import Any

from torch import Tensor, nn

from depthany.models.encoder import Four


class Levels(nn.Module):
    """Hands the four levels of the encoder to a head that takes them (`Head.takes_levels`).

    Args:
        widths: channels of the encoder's levels.
        strides: pixels per cell of the encoder's levels.

    Attributes:
        features: the widths, which the head takes in place of the width of a pyramid.
    """

    def __init__(self, widths: Four, strides: Four) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.features, self.strides = widths, strides

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Returns the four levels [b c p q], shallowest first."""
        return levels
