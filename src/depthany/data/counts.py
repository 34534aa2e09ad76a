"""What the user is told about the size of the sets before training, and by the check of the data."""

from collections.abc import Mapping, Sized


def count_warnings(sets: Mapping[str, Sized]) -> list[str]:
    """One line, with both numbers, for each set whose size is not the one that its `expected` says."""
    warnings = list[str]()
    for name, dataset in sets.items():
        if warning := count_warning(name, len(dataset), getattr(dataset, "expected", None)):
            warnings.append(warning)
    return warnings


def count_warning(name: str, found: int, expected: int | None) -> str:
    """A line with both numbers where a set has not as many images as expected; empty where it has.

    A published number such as 115K is rounded: what its zeros at the end leave open is no difference, as long
    as it is below 10 %. An exact number, such as 654, has to be met.
    """
    if expected is None or abs(found - expected) < _left_open(expected):
        return ""
    return f"{name}: {found} images found, {expected} expected"


def left_out_notes(sets: Mapping[str, Sized]) -> list[str]:
    """One line for each kind of file that is there and not used."""
    notes = list[str]()
    for name, dataset in sets.items():
        for why, count in getattr(dataset, "left_out", {}).items():
            notes.append(f"{name}: {count} pairs {why} are left out")
        if unpaired := getattr(dataset, "unpaired", []):
            notes.append(
                f"{name}: {len(unpaired)} files without partner are left out, the first: {unpaired[0]}"
            )
    return notes


def _left_open(expected: int) -> float:
    """The smallest difference that rounding does not explain."""
    zeros = len(str(expected)) - len(str(expected).rstrip("0"))
    return max(1.0, min(10.0**zeros, 0.1 * expected))
