"""A page in the browser that shows the depth of a photo: `python -m depthany.app checkpoint=...`."""

import importlib.util
import os
import sys
import threading
from contextlib import suppress
from typing import Any

import torch
from omegaconf import DictConfig

from depthany.config.entry import require, run_entry, typed
from depthany.config.schema import AppSettings
from depthany.models.fast import prepare_for_inference
from depthany.models.files.loading import load_model
from depthany.system.device import choose_amp, choose_device, keep_freed_memory


def check(cfg: DictConfig) -> DictConfig:
    """The configuration with its types checked; finds what the user can mend before a model is loaded."""
    cfg = typed(cfg, AppSettings)
    require(cfg)
    for key in ("threads", "max_upload_mb", "max_megapixels"):
        if cfg[key] is not None and cfg[key] <= 0:
            raise ValueError(f"{key}={cfg[key]}: expected more than 0")
    if cfg.port is not None and not 0 < cfg.port < 65536:
        raise ValueError(f"port={cfg.port}: expected 1 to 65535")
    for module in ("gradio", "trimesh"):
        if not importlib.util.find_spec(module):
            raise ValueError(f"the package {module} is missing: pip install -e '.[app]'")
    return cfg


def start(cfg: DictConfig) -> Any:
    """Load the model and serve the page; gives the running `gradio.Blocks`.

    Raises:
        ValueError, OSError: a setting cannot be, the checkpoint cannot be loaded, or the port is taken.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    device = choose_device(cfg.device)
    dtype = choose_amp(cfg.precision, device) or torch.float32
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    keep_freed_memory()
    model = prepare_for_inference(load_model(cfg.checkpoint, device, cfg.taps, cfg.max_depth), dtype)
    if cfg.input_size is not None:
        model.preprocessing.require_input_size(cfg.input_size)

    from depthany.inference.page import Page, build, theme

    page = build(Page(model, cfg.max_megapixels), cfg.input_size or model.input_size)
    page.launch(
        server_name=cfg.host,
        server_port=cfg.port,  # None: the first free one, by gradio
        share=False,
        max_file_size=int(cfg.max_upload_mb * 2**20),
        theme=theme(),
        footer_links=[],
        quiet=True,
        prevent_thread_lock=True,
    )
    return page


def main() -> None:
    """Console script `depthany-app`."""
    sys.exit(run_entry("app", run, literal=("checkpoint",)))


def run(cfg: DictConfig) -> int:
    """Serve the page until Ctrl-C; the exit code."""
    cfg = check(cfg)
    page = start(cfg)
    print(f"open {page.local_url} in a browser; Ctrl-C ends it", flush=True)
    with suppress(KeyboardInterrupt):
        threading.Event().wait()
    page.close(verbose=False)
    return 0


if __name__ == "__main__":
    main()
