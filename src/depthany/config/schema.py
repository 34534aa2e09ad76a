"""Types of the settings. Values and their meaning stand in configs/; here a wrong type or a misspelt key
is refused.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class DataSettings:
    labeled: dict[str, Any] = field(default_factory=dict)
    unlabeled: dict[str, Any] = field(default_factory=dict)
    val: dict[str, Any] = field(default_factory=dict)
    convert_images: bool = MISSING
    unreadable: str = MISSING
    decode: str = MISSING
    max_unreadable_share: float = MISSING
    read_timeout: float | None = MISSING
    min_side: int = MISSING
    order: str = MISSING
    window: int = MISSING
    index_dir: str | None = None
    unlabeled_root: str | None = None


@dataclass
class IndexSettings:
    """configs/index.yaml."""

    data: DataSettings = field(default_factory=DataSettings)
    workers: int | None = None


@dataclass
class PseudoLabelSettings:
    """configs/pseudo_label.yaml."""

    teacher: str = MISSING
    data: DataSettings = field(default_factory=DataSettings)
    out: str = MISSING
    verify: str | None = None
    inspect: str | None = None
    inspect_images: int = MISSING
    input_size: int | None = None
    resolution: str = MISSING
    shard_size: int = MISSING
    batch_size: int = MISSING
    workers: int = MISSING
    device: str = MISSING
    precision: str = MISSING
    threads: int | None = None


@dataclass
class CheckpointSettings:
    """What `load_model` is told, the same for every entry that uses a trained model."""

    checkpoint: str = MISSING
    taps: str | None = None
    max_depth: float | None = None


@dataclass
class ExportSettings(CheckpointSettings):
    """configs/export.yaml."""

    format: str = MISSING
    out: str = MISSING
    dtype: str = MISSING
    overwrite: bool = MISSING


@dataclass
class AppSettings(CheckpointSettings):
    """configs/app.yaml."""

    input_size: int | None = None
    precision: str = MISSING
    device: str = MISSING
    threads: int | None = None
    host: str = MISSING
    port: int | None = None
    max_upload_mb: float = MISSING
    max_megapixels: float = MISSING


@dataclass
class PredictSettings(CheckpointSettings):
    """configs/predict.yaml."""

    images: str = MISSING
    out: str = MISSING
    overwrite: bool = MISSING
    save: Any = MISSING
    colormap: str = MISSING
    video_scale: str = MISSING
    input_size: int | None = None
    flip: bool = MISSING
    scales: list[float] = field(default_factory=list)
    near_m: float | None = None
    far_m: float | None = None
    focal_px: float | None = None
    fov_deg: float = MISSING
    batch_size: int = MISSING
    workers: int = MISSING
    device: str = MISSING
    precision: str = MISSING
    threads: int | None = None


@dataclass
class EvaluateSettings:
    """configs/evaluate.yaml."""

    checkpoint: Any = MISSING
    taps: str | None = None
    max_depth: float | None = None
    protocols: Any = MISSING
    roots: dict[str, str | None] = field(default_factory=dict)
    override: dict[str, Any] = field(default_factory=dict)  # checked as settings of a Protocol
    out: str = MISSING
    quantity: Any = None
    stored_per_unit: float | None = None
    limit: int | None = None
    skip_unreadable: bool = MISSING
    pictures: int = MISSING
    batch_size: int = MISSING
    workers: int = MISSING
    device: str = MISSING
    precision: str = MISSING
    threads: int | None = None


@dataclass
class CheckDataSettings:
    """configs/check_data.yaml with its group."""

    out: str = MISSING
    limit: int | None = None
    seed: int = MISSING
    min_valid_share: float = MISSING
    sheet_images: int = MISSING
    workers: int | None = None
    data: DataSettings = field(default_factory=DataSettings)
