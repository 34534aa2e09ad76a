"""The folder of a run: new, interrupted, or finished and left alone."""

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
from depthany.training.checkpoints.state import PROGRESS_FILE, SHARDED_SUFFIX, list_checkpoints
from depthany.training.log_files import EVENTS, METRICS_FILE

LOCK_TIMEOUT_S = 8.0  # loader processes of a killed run keep its lock until they notice
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
    """Returns the folder of the checkpoints of a run."""
    return run_dir / "checkpoints"


def is_finished(run_dir: Path) -> bool:
    """Whether the folder holds a trained model."""
    return (run_dir / WEIGHTS_NAME).exists()


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Locks the folder, so that no second process trains into it; the OS releases the lock of a killed one.

    Raises:
        ValueError: another process has locked it, or it cannot be written.
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
    """Deletes what a run has written into the folder, and nothing else."""
    checkpoints = checkpoint_dir(run_dir)
    for folder in checkpoints.glob(f"*{SHARDED_SUFFIX}"):
        shutil.rmtree(folder)
    for path in [
        *checkpoints.glob("*.pt"),
        *checkpoints.glob(PROGRESS_FILE),
        *checkpoints.glob(".*.partial"),
        *run_dir.glob(EVENTS),
    ]:
        path.unlink()
    for name in _WRITTEN:
        (run_dir / name).unlink(missing_ok=True)


def remove_half_written(run_dir: Path) -> None:
    """Deletes the checkpoints that a killed run has left half written."""
    remove_partials(checkpoint_dir(run_dir))
    remove_incomplete(checkpoint_dir(run_dir))


def claim(run_dir: Path, settings: dict[str, Any]) -> None:
    """Writes the settings of a new run, or checks that an interrupted run resumes with its own.

    Args:
        settings: the configuration, and the numbers of images found.

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
