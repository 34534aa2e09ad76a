"""The command `app`: serves a page in the browser that shows the depth of a photo."""

import importlib.util
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from depthany.config.checker import check_settings
from depthany.config.schema import CheckpointSettings, ComputeSettings
from depthany.inference.ready_model import load_ready_model
from depthany.models.files.model_source import ModelSource
from depthany.system.device import prepare_compute
from depthany.system.packages import how_to_install
from depthany.system.rules import setting


@dataclass
class AppSettings(CheckpointSettings, ComputeSettings):
    """configs/app.yaml."""

    input_size: int | None = None  # its bounds depend on the model
    host: str = setting()
    port: int | None = setting(None, least=1, most=65535)
    max_upload_mb: float = setting(above=0)
    max_megapixels: float = setting(above=0)


def check(cfg: DictConfig) -> DictConfig:
    """Returns the configuration with the types of `AppSettings`; refuses to start without the packages."""
    cfg = check_settings(cfg, AppSettings)
    for module in ("gradio", "trimesh"):
        if not importlib.util.find_spec(module):
            raise ValueError(f"the package {module} is missing: {how_to_install('app')}")
    return cfg


def start(cfg: DictConfig) -> Any:
    """Loads the model, serves the page and returns the running `gradio.Blocks`.

    Raises:
        ValueError, OSError: a setting cannot be used, the checkpoint cannot be loaded, or the port is taken.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    compute = prepare_compute(cfg.device, cfg.precision, cfg.threads)
    source = ModelSource.of("checkpoint", cfg.checkpoint, cfg.taps, cfg.max_depth)
    model = load_ready_model(source, compute).model
    size = model.input_size if cfg.input_size is None else cfg.input_size
    model.preprocessing.require_input_size(size)
    if (used := model.preprocessing.shorter_side(size)) != size:
        print(f"input_size={size} is rounded up to {used}, a multiple of {model.preprocessing.multiple}")

    from depthany.inference.page import Page, build, theme
    from depthany.inference.readout import SCRIPT

    shown = Page(model, cfg.max_megapixels, used)
    page = build(shown)
    page.launch(
        allowed_paths=[str(shown.example)] if shown.example else [],
        server_name=cfg.host,
        server_port=cfg.port,  # None: gradio takes the first free one
        share=False,
        max_file_size=int(cfg.max_upload_mb * 2**20),
        theme=theme(),
        js=SCRIPT,
        footer_links=[],
        quiet=True,
        prevent_thread_lock=True,
    )
    return page


def run(cfg: DictConfig) -> int:
    """Serves the page until Ctrl-C; returns the exit code."""
    cfg = check(cfg)
    page = start(cfg)
    print(f"open {page.local_url} in a browser; press Ctrl-C to stop", flush=True)
    with suppress(KeyboardInterrupt):
        threading.Event().wait()
    page.close(verbose=False)
    return 0
