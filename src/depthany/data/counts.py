"""Lines for the user about the data sets, before training and evaluation and in the check of the data."""

from collections.abc import Mapping, Sized
from typing import Any

from depthany.data.image_formats import NEEDS_HEIC, describe_passed_over
from depthany.data.orientation import orientation_warning
from depthany.system.plurals import counted


def set_notes(sets: Mapping[str, Any]) -> list[str]:
    """Returns lines on data sets, warnings first: sizes that are not the expected ones, what the sets warn of
    (their attribute `warnings`), photos that EXIF turns, and files that exist and are not used.
    """
    warnings = count_warnings(sets)
    for name, dataset in sets.items():
        warnings += [f"{name}: {line}" for line in getattr(dataset, "warnings", [])]
        if line := orientation_warning(name, dataset):
            warnings.append(line)
    return [*(f"warning: {line}" for line in warnings), *left_out_notes(sets)]


def count_warnings(sets: Mapping[str, Sized]) -> list[str]:
    """Returns a line for each data set whose size is not its `expected`; see `count_warning`."""
    lines = (count_warning(name, len(data), getattr(data, "expected", None)) for name, data in sets.items())
    return [line for line in lines if line]


def count_warning(name: str, found: int, expected: int | None) -> str:
    """Returns a line with both numbers if they differ, else an empty string.

    A published number such as 115K is rounded: a difference within its trailing zeros and below 10 % gives
    no line. An exact number, such as 654, must match.
    """
    if expected is None or abs(found - expected) < _tolerance(expected):
        return ""
    return f"{name}: {counted(found, 'image')} found, {expected} expected"


def left_out_notes(sets: Mapping[str, Sized]) -> list[str]:
    """Returns a line for each kind of file that exists and is not used."""
    notes = list[str]()
    for name, dataset in sets.items():
        for why, count in getattr(dataset, "left_out", {}).items():
            notes.append(f"{name}: {count} pair(s) {why} are left out")
        if unpaired := getattr(dataset, "unpaired", []):
            count, first = len(unpaired), unpaired[0]
            notes.append(f"{name}: {count} file(s) without partner are left out, the first: {first}")
        if passed_over := passed_over_line(dataset):
            notes.append(f"{name}: {passed_over}")
    return notes


def passed_over_line(dataset: object) -> str:
    """Returns how many files of a data set look like images or other media and are not read; "" if none.

    A data set counts them by suffix in `passed_over`.
    """
    return describe_passed_over(
        getattr(dataset, "passed_over", {}), getattr(dataset, "heic_remedy", NEEDS_HEIC)
    )


def _tolerance(expected: int) -> float:
    """Returns the smallest difference that rounding does not explain."""
    zeros = len(str(expected)) - len(str(expected).rstrip("0"))
    return max(1.0, min(10.0**zeros, 0.1 * expected))
