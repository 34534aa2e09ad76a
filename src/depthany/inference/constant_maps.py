"""Counts predictions that are the same number everywhere, and says where they may come from."""

from collections.abc import Sequence

NAMES_SHOWN = 10
WHY = (
    "a metric file that is read as a relative one (pass max_depth), a relative one that is read as a metric "
    "one (leave max_depth out), or a model whose training has died"
)


def constant_maps(names: Sequence[str], of: int, what: str = "maps") -> str:
    """Returns one line that counts and names constant predictions.

    Args:
        names: names of those that are constant, at least one.
        of: how many predictions there are.
    """
    shown = ", ".join(sorted(names)[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
    return f"{len(names)} of {of} {what} are constant and say nothing about the image ({shown}): {WHY}"
