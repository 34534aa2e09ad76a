"""Checks a setting that is one of a few words."""

from collections.abc import Iterable


def require_choice(key: str, value: str, choices: Iterable[str]) -> None:
    """Raises ValueError, which lists the choices, if `value` is not one of them.

    Args:
        key: what is chosen, for the message, such as "split of KITTI".
    """
    listed = list(choices)
    if value not in listed:
        raise ValueError(f"unknown {key} {value!r}; choose from {', '.join(listed)}")
