"""How a setting names a trained model, the same in every command."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import yaml

from depthany.models.files.found import UnknownGeneration
from depthany.models.files.loading import find_model, load_model
from depthany.models.files.locate import is_hub_id, local_path
from depthany.models.files.weights import tensors_sha256
from depthany.models.model import DenseModel
from depthany.models.output import require_max_depth
from depthany.models.taps import TAPS
from depthany.system.choices import require_choice
from depthany.system.rules import split_words

KEYS = ("source", "taps", "max_depth")  # keys of the mapping


@dataclass(frozen=True)
class ModelSource:
    """A trained model as a setting names it.

    The value of the setting is a path or hub id, or a mapping such as {source: my.pth, taps: v2,
    max_depth: 20} for an official file whose name does not say its generation and metres.

    Attributes:
        source, taps: see `load_model`.
        max_depth: metres, `max_depth_m` of `load_model`.
        key: key of the setting, for messages.
    """

    source: str
    taps: str | None = None
    max_depth: float | None = None
    key: str = "checkpoint"

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError(f"{self.key}= is empty: pass a run directory, a file, a folder or a hub id")
        if self.taps is not None:
            require_choice("taps", self.taps, TAPS)
        if self.max_depth is not None:
            require_max_depth(self.max_depth, "max_depth")

    @classmethod
    def of(
        cls, key: str, value: Any, taps: str | None = None, max_depth: float | None = None
    ) -> "ModelSource":
        """Returns the model that the setting `key` names.

        Args:
            value: value of the setting: a text or a mapping.
            taps, max_depth: values of the settings beside it; a mapping overrides them.

        Raises:
            ValueError: the mapping has no source or an unknown key, or a value is not allowed.
        """
        named = _read_mapping(value) if _is_written_mapping(value) else value
        given = dict(named) if isinstance(named, Mapping) else {"source": named}
        if "source" not in given or not given.keys() <= set(KEYS):
            raise ValueError(
                f"{key}={value}: expected a path, a hub id, or a mapping with source and, where needed, taps "
                f"and max_depth, such as '{_example('my.pth')}'"
            )
        source = str(given.pop("source") or "")
        return cls(source, **{"taps": taps, "max_depth": max_depth, **given}, key=key)

    @classmethod
    def several(
        cls, key: str, value: Any, taps: str | None = None, max_depth: float | None = None
    ) -> list["ModelSource"]:
        """Returns the models of a setting that names one or more: `a,b`, a list, or a mapping."""
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        is_one = isinstance(value, Mapping) or _is_written_mapping(value) or local_path(str(value)).exists()
        each_value = value if is_list else [value] if is_one else split_words(key, value)
        return [cls.of(key, one, taps, max_depth) for one in each_value]

    @property
    def exists(self) -> bool:
        """Whether there is such a file or folder."""
        return local_path(self.source).exists()

    @property
    def may_exist(self) -> bool:
        """Whether there is such a file or folder, or the name can be a hub id."""
        return self.exists or is_hub_id(self.source)

    def load(self, device: str | torch.device = "cpu") -> DenseModel:
        """Returns the model; see `load_model`."""
        with self._example_in_error():
            return load_model(self.source, device, self.taps, self.max_depth)

    def weights_sha256(self) -> str:
        """Returns a hash of the weights as the file has them, without building the model.

        A copy elsewhere has the same hash; so has the same state dict in `.pth` and `.safetensors`. For a
        model of ours it is that of `weights.weights_sha256`.
        """
        with self._example_in_error():
            return tensors_sha256(find_model(self.source, self.taps, self.max_depth).state)

    @contextmanager
    def _example_in_error(self) -> Iterator[None]:
        """Shows how the setting names a generation where a file does not say its own."""
        try:
            yield
        except UnknownGeneration as error:
            raise ValueError(f"{error}, such as {self.key}='{_example(self.source)}'") from None

    def __str__(self) -> str:
        return f"{self.key}={self.source}"


def _is_written_mapping(value: Any) -> bool:
    """Whether a text is a mapping, as it arrives where a command takes its value literally."""
    return isinstance(value, str) and value.startswith("{") and value.endswith("}")


def _read_mapping(text: str) -> Any:
    spaced = re.sub(
        rf"([{{,]\s*(?:{'|'.join(KEYS)})):(?=\S)", r"\1: ", text
    )  # YAML needs the space, Hydra not
    try:
        return yaml.safe_load(spaced)
    except yaml.YAMLError:
        return {}


def _example(source: str) -> str:
    return f"{{source: {source}, taps: v2}}"
