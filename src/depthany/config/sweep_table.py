"""What came out of the jobs of a sweep: a record of each one, and the table of them all."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from depthany.system.files import write_atomically

TABLE_FILE = "sweep.csv"
MIN_WIDTH = 120  # of the output to a file or a pipe, which has no width of its own


@dataclass(frozen=True)
class Record:
    """How a job ended.

    Attributes:
        label: its values of the swept settings.
        exit: its exit code; None if it was not run.
        output: what it wrote; message: why it failed.
        scores: by name.
    """

    job: int
    label: str
    exit: int | None
    seconds: float = 0.0
    output: str | None = None
    message: str = ""
    scores: dict[str, float] = field(default_factory=dict)


def write_record(folder: Path, record: Record) -> None:
    """Writes the record of a job, from whatever process it ran in."""
    text = json.dumps(asdict(record), indent=2) + "\n"
    write_atomically(_path(folder, record.job), lambda path: path.write_text(text))


def read_record(folder: Path, job: int) -> Record | None:
    """Returns the record of a job, None if the job has not ended."""
    path = _path(folder, job)
    return Record(**json.loads(path.read_text())) if path.exists() else None


def clear_records(folder: Path) -> None:
    """Deletes the records of an earlier sweep with the same folder."""
    for path in folder.glob("job_*.json"):
        path.unlink()


def write_table(folder: Path, records: Sequence[Record]) -> Path:
    """Writes sweep.csv, a line for each job with a column for each score; returns its path."""
    names = _names(records)
    fixed = ("job", "label", "exit", "seconds", "output", "message")

    def fill(path: Path) -> None:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["job", "settings", *fixed[2:], *names])
            for record in records:
                values = asdict(record) | {"seconds": round(record.seconds, 1)}
                writer.writerow([values[key] for key in fixed] + [record.scores.get(name) for name in names])

    write_atomically(folder / TABLE_FILE, fill)
    return folder / TABLE_FILE


def print_table(records: Sequence[Record]) -> None:
    """Prints a row for each job: its settings, exit code, scores, and output or error."""
    console, names = Console(), _names(records)
    if not console.is_terminal:
        console = Console(width=max(console.width, MIN_WIDTH))
    fold = [Column(name, overflow="fold") for name in ("settings", "output, or error")]
    scores = [Column(name, justify="right", overflow="fold") for name in names]
    table = Table("job", fold[0], Column("exit", justify="right"), *scores, fold[1])
    for record in records:
        code = "-" if record.exit is None else str(record.exit)
        cells: list[Any] = [str(record.job), record.label, code]
        cells += [f"{record.scores[name]:.4f}" if name in record.scores else "" for name in names]
        cells.append(record.message or record.output or "")
        table.add_row(*(Text(cell) for cell in cells))  # names of files may look like markup
    console.print(table)


def _names(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record.scores))


def _path(folder: Path, job: int) -> Path:
    return folder / f"job_{job}.json"
