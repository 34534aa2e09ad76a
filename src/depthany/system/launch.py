"""What torchrun's environment variables say of the processes of a run. Imports no torch."""

import os

REMEDY = "unset WORLD_SIZE to train in one process, or start with torchrun"


def launched_ranks() -> tuple[int, int, int]:
    """Returns rank, number of processes, and rank on this machine; (0, 1, 0) without torchrun.

    Raises:
        ValueError: some of the variables are missing, or do not go together.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
    if given.get("WORLD_SIZE", "1") == "1":
        return 0, 1, 0
    if missing := [name for name in names if name not in given]:
        raise ValueError(f"WORLD_SIZE={given['WORLD_SIZE']} is set without {', '.join(missing)}: {REMEDY}")
    shown = " ".join(f"{name}={given[name]}" for name in names)
    if not all(given[name].isdecimal() for name in names if name != "MASTER_ADDR"):
        raise ValueError(f"{shown}: expected whole numbers: {REMEDY}")
    rank, size, local_rank = (int(given[name]) for name in names[:3])
    if not (rank < size and local_rank < size and int(given["MASTER_PORT"]) < 1 << 16):
        raise ValueError(f"{shown}: expected ranks below WORLD_SIZE and a port: {REMEDY}")
    return rank, size, local_rank


def is_alone() -> bool:
    """Whether this is the only process of its run, or the variables do not say."""
    try:
        return launched_ranks()[1] == 1
    except ValueError:
        return True
