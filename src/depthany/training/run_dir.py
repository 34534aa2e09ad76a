"""The folder of a run: new, interrupted, or finished."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from depthany.models.model import CONFIG_NAME, WEIGHTS_NAME
from depthany.system.files import remove_partials, write_atomically
from depthany.training.changes import FREE, LENGTH, MOVED, REFUSED, Changes, find_changes, listed, summarised
from depthany.training.checkpoints.sharded import remove_incomplete
from depthany.training.checkpoints.state import BEST_FILE, PROGRESS_FILE, list_checkpoints, step_of
from depthany.training.loggers.table import LOGGERS
from depthany.training.settings import ONCE

LOCK_TIMEOUT_S = 8.0  # loader processes of a killed run keep its lock until they notice
SETTINGS_FILE, RESULTS_FILE, UNREADABLE_FILE = "settings.yaml", "results.json", "unreadable.txt"
EXAMPLES_FILE = "examples.png"
_WRITTEN = (WEIGHTS_NAME, CONFIG_NAME, RESULTS_FILE, UNREADABLE_FILE, EXAMPLES_FILE)


class FinishedRun(ValueError):
    """The folder holds the model of other settings: what was asked for is not there, and nothing was done."""

    exit_code = 1


@dataclass(frozen=True)
class Finished:
    """A trained model: the steps it was trained for, and the settings, with the data found.

    ended_early: whether early stopping ended its training.
    """

    step: int
    settings: Mapping[str, Any]
    ended_early: bool = False

    def waits_longer(self, changes: Changes) -> bool:
        """Whether early stopping ended its training, and the patience has been raised since."""
        of_patience = [each for each in changes.all if each.key == "early_stopping.patience"]
        return self.ended_early and any(
            each.now is None or (each.before is not None and each.now > each.before) for each in of_patience
        )


def checkpoint_dir(run_dir: Path) -> Path:
    """Returns the folder of the checkpoints of a run."""
    return run_dir / "checkpoints"


def label_dir(run_dir: Path) -> Path:
    """Returns the folder of the labels that `pseudo_labels=once` makes."""
    return run_dir / "pseudo_labels"


def finished(run_dir: Path) -> Finished | None:
    """Returns what the folder's trained model was trained with; None if there is no model."""
    if not (run_dir / WEIGHTS_NAME).exists():
        return None
    training = json.loads((run_dir / CONFIG_NAME).read_text()).get("training")
    if training is None:  # of an older version
        step = json.loads((run_dir / RESULTS_FILE).read_text())["step"]
        training = {"step": step, "settings": _begun(run_dir)}
    return Finished(training["step"], training["settings"], "ended_early" in training)


def require_own(run_dir: Path, overwrite: bool) -> None:
    """Checks that what a run deletes or replaces in the folder was written by one; other files stay.

    Raises:
        ValueError: files of such names lie in a folder that belongs to no run, or `overwrite` is given for a
            folder that holds the current one or the user's home.
    """
    folder, current = run_dir.expanduser().resolve(), Path.cwd().resolve()
    if overwrite and (current.is_relative_to(folder) or Path.home().is_relative_to(folder)):
        which = "current folder" if current.is_relative_to(folder) else "home"
        raise ValueError(
            f"run_dir={run_dir} is or holds the {which}, and overwrite=true deletes files in it: pass the "
            "folder of one run"
        )
    if _is_run(run_dir):
        return
    if foreign := [path.relative_to(run_dir).as_posix() for path in _own_files(run_dir)]:
        raise ValueError(
            f"run_dir={run_dir} holds {', '.join(foreign[:3])}{', ...' if foreign[3:] else ''} but no "
            f"{SETTINGS_FILE} of a run: nothing in it is touched, not even with overwrite=true; pass another "
            "run_dir"
        )


def _is_run(run_dir: Path) -> bool:
    """Whether a run has begun in the folder: it wrote its settings first, and deletes them last."""
    try:
        settings = OmegaConf.load(run_dir / SETTINGS_FILE)
    except Exception:  # there is none, or another program's
        return False
    return OmegaConf.is_dict(settings) and {"run_dir", "stage"} <= settings.keys()


def _has_own_labels(run_dir: Path) -> bool:
    """Whether the run in the folder makes its labels there; else a store of that name is another's."""
    settings = _begun(run_dir) if _is_run(run_dir) else {}
    return settings.get("pseudo_labels") == ONCE and "teacher" in settings["stage"]


def _own_files(run_dir: Path) -> Iterator[Path]:
    """Yields the files and folders with names that a run writes, its settings last."""
    folder = checkpoint_dir(run_dir)
    yield from list_checkpoints(folder)
    for pattern in (BEST_FILE, PROGRESS_FILE, ".step_*.partial", f".{BEST_FILE}.partial"):
        yield from sorted(folder.glob(pattern))
    for pattern in (pattern for logger in LOGGERS.values() for pattern in logger.written):
        yield from sorted(run_dir.glob(pattern))
    if os.path.lexists(label_dir(run_dir)) and _has_own_labels(run_dir):
        yield label_dir(run_dir)
    for name in (*_WRITTEN, SETTINGS_FILE):
        if os.path.lexists(run_dir / name):
            yield run_dir / name


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


def clear(run_dir: Path, in_use: Path | None = None) -> None:
    """Deletes what a run has written into the folder, and nothing else.

    Args:
        in_use: a file or folder that the next run reads, which stays.
    """
    kept = in_use.resolve() if in_use is not None else None
    for path in [path for path in _own_files(run_dir) if path.resolve() != kept]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def remove_half_written(run_dir: Path) -> None:
    """Deletes the checkpoints that a killed run has left half written."""
    remove_partials(checkpoint_dir(run_dir))
    remove_incomplete(checkpoint_dir(run_dir))


def is_complete(run_dir: Path, settings: Mapping[str, Any], older: Mapping[str, Any]) -> Changes | None:
    """Returns how the settings differ from those of the model in the folder, None if it is to be trained.

    What matters must be equal; where the data lies elsewhere or the length differs, `claim` decides.

    Args:
        settings: the configuration, and what is found without a look at images.
        older: see `find_changes`.

    Raises:
        FinishedRun: the model was trained with other settings; each difference is named.
    """
    model = finished(run_dir)
    if model is None:
        return None
    changes = find_changes(model.settings, settings, older)
    _require_same(run_dir, changes, model)
    return None if changes.of(LENGTH, MOVED) or model.waits_longer(changes) else changes


def claim(
    run_dir: Path, settings: Mapping[str, Any], older: Mapping[str, Any], total_steps: int
) -> Changes | None:
    """Writes the settings of a run that begins or continues.

    Args:
        settings: the configuration, and the data found.
        older: see `find_changes`.
        total_steps: length of the run.

    Returns:
        The settings that changed since the run began; None if the folder holds the model that would be
        trained.

    Raises:
        ValueError: the folder holds a run with other settings or data, each difference is named, or one that
            is longer.
    """
    model, checkpoints = finished(run_dir), list_checkpoints(checkpoint_dir(run_dir))
    changes = Changes()
    if (model or checkpoints) and (run_dir / SETTINGS_FILE).exists():
        changes = find_changes(_begun(run_dir), settings, older)
        _require_same(run_dir, changes, model)
        done = max([step_of(path) for path in checkpoints[-1:]] + ([model.step] if model else []))
        if model and _is_same_length(model, settings, older, total_steps):
            return None
        if done > total_steps:
            raise _refusal(model)(
                f"{run_dir} holds a run of {done} steps, but {total_steps} are asked for "
                f"({listed(changes.of(LENGTH))}): pass another run_dir, or overwrite=true"
            )
        if model and not checkpoints:
            raise FinishedRun(
                f"{run_dir} holds a finished run of {done} steps without its checkpoints, which cannot "
                f"continue to {total_steps}: pass another run_dir and model.init={run_dir}, or overwrite=true"
            )
    if _is_run(run_dir):
        remove_half_written(run_dir)
    text = OmegaConf.to_yaml(OmegaConf.create(dict(settings)))
    write_atomically(run_dir / SETTINGS_FILE, lambda partial: partial.write_text(text))
    return changes


def _begun(run_dir: Path) -> dict[str, Any]:
    """Returns the settings that the run in the folder has begun or continued with."""
    began = OmegaConf.to_container(OmegaConf.load(run_dir / SETTINGS_FILE))
    assert isinstance(began, dict)
    return {str(key): value for key, value in began.items()}


def _is_same_length(
    model: Finished, settings: Mapping[str, Any], older: Mapping[str, Any], total_steps: int
) -> bool:
    """Whether the model is that of the length asked for, or early stopping would end it at the same step."""
    changes = find_changes(model.settings, settings, older)
    return model.step == total_steps or not (changes.of(LENGTH) or model.waits_longer(changes))


def _refusal(model: Finished | None) -> type[ValueError]:
    return ValueError if model is None else FinishedRun


def _require_same(run_dir: Path, changes: Changes, model: Finished | None) -> None:
    """Raises a ValueError, or FinishedRun where there is a model, that names what must not have changed."""
    refused = changes.of(REFUSED)
    if not refused:
        return
    others = changes.of(FREE, LENGTH, MOVED)
    allowed = f"; these may change: {summarised(others)}" if others else ""
    raise _refusal(model)(
        f"{run_dir} holds a {'run' if model is None else 'finished run'} with other settings or data: pass "
        "another run_dir, or overwrite=true, or its own settings and files to continue it. What changes the "
        f"order of the images or what is learned: {summarised(refused)}{allowed}"
    )
