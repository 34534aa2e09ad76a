"""The report of a check: a table on the console, report.json and problems.txt."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from depthany.checking.inspect import ERRORS, GRAY
from depthany.checking.summary import FIRST, SetSummary
from depthany.system.files import write_atomically

REPORT_FILE, PROBLEMS_FILE = "report.json", "problems.txt"
_BARS, _BARS_ASCII = "▁▂▃▄▅▆▇█", ".:-=+*#@"
_WIDTH = 150  # without a terminal


def write_files(out: Path, summaries: Mapping[str, SetSummary], about: Mapping[str, Any]) -> None:
    """Writes report.json and problems.txt.

    A line of problems.txt has five fields, separated by tabs: error or warning, data set, kind, path, reason.
    """
    sets = {name: summary.as_dict() for name, summary in summaries.items()}
    ok = not any(summary.is_wrong for summary in summaries.values())
    text = json.dumps({"ok": ok, **about, "sets": sets}, indent=2, ensure_ascii=False) + "\n"
    as_json = text.encode("utf-8", "backslashreplace")  # a byte of a name that is not UTF-8 becomes \udcXX
    write_atomically(out / REPORT_FILE, lambda path: path.write_bytes(as_json))
    lines = [line for name, summary in summaries.items() for line in _lines(name, summary)]
    as_named = "".join(lines).encode("utf-8", "surrogateescape")  # the same bytes as in the file's name
    write_atomically(out / PROBLEMS_FILE, lambda path: path.write_bytes(as_named))


def _lines(name: str, summary: SetSummary) -> list[str]:
    lines = [("error", name, "cannot be opened", summary.root, summary.failure)] if summary.failure else []
    lines += [
        ("error" if problem.kind in ERRORS else "warning", name, problem.kind, problem.path, problem.reason)
        for problem in summary.problems
    ]
    lines += [("warning", name, each.kind, summary.root, each.text) for each in summary.warnings()]
    return ["\t".join(" ".join(str(part).split()) for part in line) + "\n" for line in lines]


def show(summaries: Mapping[str, SetSummary]) -> None:
    """Prints a table with a row for each data set, then their problems."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    table = Table(
        Column("set", overflow="fold"), "images", "errors", "warnings", "width x height", title="data"
    )
    for title in ("valid", "sky", "5 %", "median", "95 %"):
        table.add_column(title, justify="right")
    table.add_column("depth, in octaves")
    bars = _BARS_ASCII if console.options.ascii_only else _BARS
    for name, summary in summaries.items():
        table.add_row(name, *_cells(summary, bars))
    console.print(table)
    for name, summary in summaries.items():
        for line in complaints(name, summary):
            printable = line.encode(console.encoding, "backslashreplace").decode(console.encoding)
            console.print(printable, highlight=False, markup=False, soft_wrap=True)


def _cells(summary: SetSummary, bars: str) -> list[str]:
    images = f"{summary.checked}" if summary.checked == summary.found else ""
    counts = [str(summary.errors), str(summary.warning_count())]
    cells = [images or f"{summary.checked} of {summary.found}", *counts, _sizes(summary)]
    depth, count = summary.histogram, summary.with_depth
    if not count:
        return [*cells, *[""] * 6]
    cells += [f"{summary.valid / count:.1%}", f"{summary.sky / count:.1%}"]
    if not depth.total:
        return [*cells, *[""] * 4]
    return [*cells, *(f"{depth.percentile(p):.3g}" for p in (5, 50, 95)), _spark(summary, bars)]


def _sizes(summary: SetSummary) -> str:
    sizes = {name: f"{width}x{height}" for name, (width, height) in summary.size_range().items()}
    if len(summary.sizes) < 2:
        return sizes.get("min", "")
    return f"{sizes['median']} ({sizes['min']} to {sizes['max']})"


def _spark(summary: SetSummary, bars: str) -> str:
    """Returns the histogram in one line: smallest octave, a bar for each octave (blank if empty), largest."""
    octaves = summary.histogram.octaves()
    if not octaves:
        return "all at 0"
    most = max(count for *_, count in octaves)
    drawn = "".join(bars[(len(bars) - 1) * count // most] if count else " " for *_, count in octaves)
    unit = " m" if summary.unit == "m" else ""
    return f"{octaves[0][0]:g} {drawn} {octaves[-1][1]:g}{unit}"


def complaints(name: str, summary: SetSummary) -> list[str]:
    """Returns lines about the problems of a data set, errors first. Names the first ten files of each
    kind.
    """
    lines = [f"error: {name}: {each}" for each in (summary.failure, summary.useless) if each]
    for kind, count in sorted(summary.kinds.items(), key=lambda item: item[0] not in ERRORS):
        lines.append(f"{'error' if kind in ERRORS else 'warning'}: {name}: {kind}: {count}")
        named = [problem for problem in summary.problems if problem.kind == kind][:FIRST]
        lines += [f"    {problem.path}: {problem.reason}" for problem in named]
        if count > FIRST:
            lines.append(f"    and {count - FIRST} more")
    lines += [f"warning: {name}: {warning.text}" for warning in summary.warnings()]
    lines += [f"note: {name}: {note}" for note in summary.notes()]
    for reason, count in summary.left_out.items():
        lines.append(f"note: {name}: {count} left out by its reader: {reason}")
    if gray := summary.traits[GRAY].images:
        lines.append(f"note: {name}: {gray} of {summary.checked} images are gray")
    odd = {mode: count for mode, count in sorted(summary.modes.items()) if mode != "RGB"}
    if odd:
        modes = ", ".join(f"{count} {mode}" for mode, count in odd.items())
        lines.append(f"note: {name}: converted to RGB: {modes}")
    return lines
