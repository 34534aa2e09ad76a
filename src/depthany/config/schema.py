"""Settings that several commands share. The settings of one command stand in its own file, those of an object
beside the object.
"""

from dataclasses import dataclass, field
from typing import Any

from depthany.system.device import PRECISIONS
from depthany.system.rules import setting


@dataclass
class CommandSettings:
    """Settings of every command that loads a model or a data set (configs/command.yaml).

    plugins: modules that are imported before the configuration is checked.
    """

    plugins: list[str] = field(default_factory=list)


@dataclass
class ComputeSettings(CommandSettings):
    """Where a model computes, and in which number format; see `prepare_compute`."""

    device: str = setting()
    precision: str = setting(choices=PRECISIONS)
    threads: int | None = setting(None, least=1)


@dataclass
class BatchSettings(ComputeSettings):
    """Images that go through the model together, and the threads that read them."""

    batch_size: int = setting(least=1)
    workers: int | None = setting(None, least=1)  # None: see `system.device.reading_threads`


@dataclass
class OfficialFileSettings(CommandSettings):
    """What the name of an official file can leave open, see `models.files.model_source.ModelSource`."""

    taps: str | None = None
    max_depth: float | None = None


@dataclass
class CheckpointSettings(OfficialFileSettings):
    """The model of a command: a path, a hub id, or a mapping of `ModelSource`."""

    checkpoint: Any = setting()
