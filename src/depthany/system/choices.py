"""Checks a setting that is one of a few words, or a list."""

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
