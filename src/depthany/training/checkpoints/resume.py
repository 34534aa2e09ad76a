"""Find the newest whole checkpoint of a run, of either kind, and take it over in any number of processes."""

import logging
from pathlib import Path
from typing import Any

from depthany.system.distributed import ALONE, Processes
from depthany.system.files import why
from depthany.training.checkpoints.sharded import fault_of, load_sharded
from depthany.training.checkpoints.state import SHARDED_SUFFIX, Parts, list_checkpoints, read_checkpoint

logger = logging.getLogger(__name__)


def take_over(folder: Path, parts: Parts, processes: Processes = ALONE) -> None:
    """Put the newest whole checkpoint of `folder` into `parts`, which stay as they are where there is none.

    All processes come here together and take the same one: a checkpoint that one of them cannot read counts
    as damaged.

    Raises:
        ValueError: there are checkpoints, and none of them is whole.
    """
    found = load_latest(folder, processes)
    if isinstance(found, Path):
        load_sharded(found, parts)
    elif found is not None:
        parts.restore(found)


def load_latest(folder: Path, processes: Processes = ALONE) -> dict[str, Any] | Path | None:
    """Payload of the newest checkpoint that is whole, or its folder where it is split; None without any.

    A damaged one is named in the log and passed over.

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
            f"{folder}: none of {len(names)} checkpoints can be read; overwrite=true starts anew"
        )
    return None


def _read(path: Path, processes: Processes) -> tuple[dict[str, Any] | None, str]:
    """Payload of a file, None for a folder; and what is wrong with it."""
    if path.suffix == SHARDED_SUFFIX:
        return None, fault_of(path, processes.rank, processes.size)
    try:
        return read_checkpoint(path), ""
    except Exception as error:  # whatever its bytes lead to; told by the caller, and fatal if none is left
        return None, why(error) or type(error).__name__
