"""Resume a run from its newest whole checkpoint, of either kind, on any number of ranks."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from depthany.system.distributed import ALONE, Processes
from depthany.system.files import why
from depthany.training.checkpoints.sharded import fault_of, load_sharded
from depthany.training.checkpoints.state import (
    PROGRESS_FILE,
    SHARDED_SUFFIX,
    TrainingState,
    list_checkpoints,
    read_checkpoint,
)

logger = logging.getLogger(__name__)


def resume_latest(folder: Path, state: TrainingState, processes: Processes = ALONE) -> None:
    """Loads the newest whole checkpoint of `folder` into `state`; changes nothing where there is none.

    All ranks call it together and load the same one: a checkpoint that one of them cannot read counts as
    damaged.

    Raises:
        ValueError: there are checkpoints, and none of them is whole.
    """
    found = load_latest(folder, processes)
    if isinstance(found, Path):
        load_sharded(found, state)
    elif found is not None:
        state.restore(found)
    if processes.is_main:
        state.progress.read(folder / PROGRESS_FILE)
    state.progress.restore(processes.from_main(asdict(state.progress)))


def load_latest(folder: Path, processes: Processes = ALONE) -> dict[str, Any] | Path | None:
    """Returns the payload of the newest whole checkpoint, or its folder if it is sharded; None without any.

    A damaged one is named in the log, and the one before is tried.

    Raises:
        ValueError: there are checkpoints, and none of them is whole.
    """
    names = processes.from_main([path.name for path in list_checkpoints(folder)])
    for name in reversed(names):
        payload, fault = _read(folder / name, processes)
        faults = [each for each in processes.gather(fault) if each]
        if not faults:
            return folder / name if payload is None else payload
        logger.warning("%s is damaged (%s): trying the one before", folder / name, faults[0])
    if names:
        raise ValueError(
            f"{folder}: none of {len(names)} checkpoints can be read; overwrite=true starts from scratch"
        )
    return None


def _read(path: Path, processes: Processes) -> tuple[dict[str, Any] | None, str]:
    """Returns the payload of a file, None for a folder; and what is wrong with it, "" if nothing is."""
    if path.suffix == SHARDED_SUFFIX:
        return None, fault_of(path, processes.rank, processes.size)
    try:
        return read_checkpoint(path), ""
    except Exception as error:  # it can be any; the caller reports it, and fails if none is left
        return None, why(error) or type(error).__name__
