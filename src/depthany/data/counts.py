"""Lines for the user about the sizes of the data sets, before training and in the check of the data."""

from collections.abc import Mapping, Sized


def count_warnings(sets: Mapping[str, Sized]) -> list[str]:
    """Returns a line for each data set whose size is not its `expected`; see `count_warning`."""
    lines = (count_warning(name, len(data), getattr(data, "expected", None)) for name, data in sets.items())
    return [line for line in lines if line]


def count_warning(name: str, found: int, expected: int | None) -> str:
    """Returns a line with both numbers if they differ, else an empty string.

    A published number such as 115K is rounded: a difference within its zeros at the end, and below 10 %, is
    none. An exact number, such as 654, must be met.
    """
    if expected is None or abs(found - expected) < _tolerance(expected):
        return ""
    return f"{name}: {found} images found, {expected} expected"


def left_out_notes(sets: Mapping[str, Sized]) -> list[str]:
    """Returns a line for each kind of file that exists and is not used."""
    notes = list[str]()
    for name, dataset in sets.items():
        for why, count in getattr(dataset, "left_out", {}).items():
            notes.append(f"{name}: {count} pairs {why} are left out")
        if unpaired := getattr(dataset, "unpaired", []):
            count, first = len(unpaired), unpaired[0]
            notes.append(f"{name}: {count} files without partner are left out, the first: {first}")
    return notes


def _tolerance(expected: int) -> float:
    """Returns the smallest difference that rounding does not explain."""
    zeros = len(str(expected)) - len(str(expected).rstrip("0"))
    return max(1.0, min(10.0**zeros, 0.1 * expected))
