"""Settings of a mixture of data sets (configs/data and configs/reading)."""

from dataclasses import dataclass, field
from typing import Any

from depthany.data.sampler import ORDERS
from depthany.data.weighted import SetWeights
from depthany.system.rules import setting

UNREADABLE = ("error", "skip")
DECODES = ("exact", "reduced")


@dataclass
class DataSettings:
    """The sets of a mixture and how their images are read; the YAML files explain each setting."""

    labeled: dict[str, Any] = field(default_factory=dict)
    unlabeled: dict[str, Any] = field(default_factory=dict)
    val: dict[str, Any] = field(default_factory=dict)
    convert_images: bool = setting()
    unreadable: str = setting(choices=UNREADABLE)
    decode: str = setting(choices=DECODES)
    max_unreadable_share: float = setting(least=0)
    read_timeout: float | None = setting(least=0)
    min_side: int = setting(least=1)
    order: str = setting(choices=ORDERS)
    window: int = setting(least=1)
    weights: SetWeights = field(default_factory=SetWeights)
    index_dir: str | None = setting(None, filled=True)
    unlabeled_root: str | None = None
