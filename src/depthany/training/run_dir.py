"""The folder of a run: new, to be continued, or finished and not to be touched."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from depthany.config.entry import flat
from depthany.models.model import CONFIG_NAME, WEIGHTS_NAME
from depthany.system.files import remove_partials, write_atomically
from depthany.training.checkpoints.sharded import remove_incomplete
from depthany.training.checkpoints.state import SHARDED_SUFFIX, list_checkpoints
from depthany.training.log_files import EVENTS, METRICS_FILE

LOCK_TIMEOUT_S = 8.0  # the loaders of a run that was killed hold on to its lock until they notice
SETTINGS_FILE, RESULTS_FILE, UNREADABLE_FILE = "settings.yaml", "results.json", "unreadable.txt"
_WRITTEN = (WEIGHTS_NAME, CONFIG_NAME, METRICS_FILE, SETTINGS_FILE, RESULTS_FILE, UNREADABLE_FILE)
_HARMLESS = (
    "run_dir",
    "overwrite",
    "threads",
    "workers",
    "parallel",
    "log_every",
    "image_every",
    "save_every",
    "keep_checkpoints",
    "if_save_fails",
    "activation_checkpointing",
    "data.max_unreadable_share",
    "data.read_timeout",
)


def checkpoint_dir(run_dir: Path) -> Path:
    """Where the checkpoints of a run lie."""
    return run_dir / "checkpoints"


def is_finished(run_dir: Path) -> bool:
    """Whether a trained model stands in the folder."""
    return (run_dir / WEIGHTS_NAME).exists()


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the folder, so that no second process trains into it; a killed one lets go of it.

    Raises:
        ValueError: another process holds it, or it cannot be written.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir / ".lock", timeout=LOCK_TIMEOUT_S)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"another process trains into {run_dir}: wait for it, or pass another run_dir"
        ) from None
    try:
        yield
    finally:
        lock.release()


def clear(run_dir: Path) -> None:
    """Delete what a run has written into the folder, and nothing else."""
    checkpoints = checkpoint_dir(run_dir)
    for folder in checkpoints.glob(f"*{SHARDED_SUFFIX}"):
        shutil.rmtree(folder)
    for path in [
        *checkpoints.glob("*.pt"),
        *checkpoints.glob(".*.partial"),
        *run_dir.glob(EVENTS),
    ]:
        path.unlink()
    for name in _WRITTEN:
        (run_dir / name).unlink(missing_ok=True)


def remove_half_written(run_dir: Path) -> None:
    """Delete what a run that was killed has left of checkpoints that it was writing."""
    remove_partials(checkpoint_dir(run_dir))
    remove_incomplete(checkpoint_dir(run_dir))


def claim(run_dir: Path, settings: dict[str, Any]) -> None:
    """Make the folder this run's, or make sure that it goes on with what it began with.

    Args:
        settings: the configuration, and the numbers of images that its sets were found to have.

    Raises:
        ValueError: the folder holds a run with other settings or sets; each difference is named.
    """
    path = run_dir / SETTINGS_FILE
    if list_checkpoints(checkpoint_dir(run_dir)) and path.exists():
        began = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(began, dict)
        before, now = flat(began), flat(settings)
        changed = [
            f"{key}={before.get(key)} is now {now.get(key)}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and not _is_harmless(key)
        ]
        if changed:
            raise ValueError(
                f"{run_dir} holds a run with other settings or data ({'; '.join(changed)}): start it with "
                "its own to continue, or pass overwrite=true or another run_dir"
            )
    text = OmegaConf.to_yaml(OmegaConf.create(settings))
    write_atomically(path, lambda partial: partial.write_text(text))


def _is_harmless(key: str) -> bool:
    return key.startswith(_HARMLESS) or key.endswith(".index_dir")  # each large set repeats data.index_dir
