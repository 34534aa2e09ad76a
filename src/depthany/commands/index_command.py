"""The command `index`: lists the files of large unlabeled sets once."""

import logging
from dataclasses import dataclass, field

from hydra.utils import instantiate
from omegaconf import DictConfig

from depthany.config.checker import check_settings
from depthany.config.schema import CommandSettings
from depthany.data.counts import passed_over_line
from depthany.data.mixture import DataSettings
from depthany.system.plurals import counted
from depthany.system.rules import setting


@dataclass
class IndexSettings(CommandSettings):
    """configs/index.yaml."""

    data: DataSettings = field(default_factory=DataSettings)
    workers: int | None = setting(None, least=1)


def run(cfg: DictConfig) -> int:
    """Builds or updates the index of every set that has one; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cfg = check_settings(cfg, IndexSettings, optional=("data.labeled", "data.val"))
    large = {
        name: entry
        for name, entry in cfg.data.unlabeled.items()
        if "index_dir" in entry and entry.root is not None
    }
    if not large:
        raise ValueError(
            "none of the sets in data.unlabeled has a root and an index: pass data.unlabeled.NAME.root=..., "
            "or data.unlabeled_root=... where the mixture has it; plain folders (folder_images) need no index"
        )
    for name, entry in large.items():
        images = instantiate(entry, update=True, build_workers=cfg.workers)
        of = f" of {entry.expected}" if entry.get("expected") else ""
        others = f", {passed_over}" if (passed_over := passed_over_line(images)) else ""
        print(f"{name}: {counted(len(images), 'image')}{of}{others}, index {images.index_path}", flush=True)
        for path, why in images.broken:
            print(f"warning: {name}: {path} {why}", flush=True)
    return 0
