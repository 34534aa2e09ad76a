"""Checks a setting that is one of a few words, a list, or a number."""

import math
from collections.abc import Iterable
from typing import Any


def require_choice(key: str, value: str, choices: Iterable[str]) -> None:
    """Raises ValueError, which lists the choices, if `value` is not one of them.

    Args:
        key: what is chosen, for the message, such as "split of KITTI".
    """
    listed = list(choices)
    if value not in listed:
        raise ValueError(f"unknown {key} {value!r}; choose from {', '.join(listed)}")


def require_list(key: str, value: Any) -> None:
    """Raises ValueError if `value` is a single word or number, which a reader could take for its letters."""
    if isinstance(value, str | int | float):
        raise ValueError(f"{key}={value}: expected a list, {key}=[{value}]")


def require_share(key: str, value: Any) -> None:
    """Raises ValueError unless `value` is a number in [0, 1)."""
    require_number(key, value)
    if not 0 <= value < 1:
        raise ValueError(f"{key}={value}: expected a share in [0, 1)")


def require_number(key: str, value: Any, whole: bool = False) -> None:
    """Raises ValueError unless `value` is a finite number; a whole one, if asked for."""
    is_number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise ValueError(f"{key}={value!r}: expected a {'whole ' if whole else ''}number")
