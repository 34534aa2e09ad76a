"""What a file holds, before its model is built."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor


class UnknownGeneration(ValueError):
    """Neither the name of an official file nor the caller says its generation."""


@dataclass(frozen=True)
class Found:
    """What a source holds: arguments of `build_model`, and weights.

    Attributes:
        where: path of the weights.
        config: arguments of `build_model`.
        state: weights by their names in the file.
        name_of: returns the name in the file of a weight of `DenseModel`.
        quantity: what the file says that its map holds; None if it does not say so.
        plugins: modules that were imported when the file was written.
        is_named: whether the file, or its name, says what it predicts.
    """

    where: Path
    config: Mapping[str, Any]
    state: Mapping[str, Tensor]
    name_of: Callable[[str], str] = str
    quantity: Mapping[str, Any] | None = None
    plugins: Sequence[str] = ()
    is_named: bool = True
