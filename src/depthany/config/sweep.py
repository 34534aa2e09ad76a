"""The jobs of a sweep (`-m seed=0,1`): runs the command with the settings of each, and notes how it ended."""

import importlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from depthany.config.errors import OF_THE_USER, exit_code_of, one_line
from depthany.config.given import note_given
from depthany.config.paths import expand_home
from depthany.config.sweep_table import (
    Record,
    clear_records,
    print_table,
    read_record,
    write_record,
    write_table,
)
from depthany.system.plugins import load_plugins
from depthany.system.signals import sigterm_raises

TEACHER = "stage.teacher"
INTERRUPTED = (130, 143)  # exit codes after Ctrl-C and SIGTERM

Run = Callable[[DictConfig], int]
Scores = Callable[[DictConfig], Mapping[str, float]]


@dataclass(frozen=True)
class Command:
    """A command whose jobs can form a sweep. It is pickled for jobs on a cluster.

    Attributes:
        name: name of its file in configs/.
        run: runs a job and returns its exit code.
        output: the setting that names what a job writes; None if there is none.
        scores: returns the scores of a successful job for the table, from its configuration; None: no scores.
    """

    name: str
    run: Run
    output: str | None = None
    scores: Scores | None = None

    def __reduce__(self) -> Any:
        functions = (_importable(self.run), self.scores and _importable(self.scores))
        return Command, (self.name, functions[0], self.output, functions[1])


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        number: from 0, in the order of the sweep.
        label: its values of the swept settings, such as "seed=0".
        output: what it writes; None if the command has no such setting.
        teacher: number of the job whose model is its teacher; None: the teacher is from elsewhere.
    """

    number: int
    label: str
    output: str | None = None
    teacher: int | None = None


@dataclass(frozen=True)
class Sweep:
    """All jobs of a sweep. Hydra calls it with the configuration of each job, perhaps in another process.

    Attributes:
        folder: holds the records of the jobs, and the table.
    """

    command: Command
    jobs: tuple[Job, ...]
    folder: Path

    def __call__(self, cfg: DictConfig) -> int:
        """Runs one job, writes its record and returns its exit code; an interruption ends the sweep."""
        note_given()
        job = self.jobs[HydraConfig.get().job.num]
        to = f" -> {job.output}" if job.output else ""
        print(f"\n== job {job.number} of {len(self.jobs)}: {job.label}{to}", flush=True)
        began, code, message, scores = time.monotonic(), 1, "", dict[str, float]()
        try:
            self._place(job, cfg)
            code = run_job(self.command.run, cfg)
            if code == 0 and self.command.scores is not None:
                scores = dict(self.command.scores(cfg))
        except OF_THE_USER as error:
            code, message = exit_code_of(error), one_line(error, self.command.name)
            if os.environ.get("DEPTHANY_TRACEBACK") == "1":
                traceback.print_exc()
        except KeyboardInterrupt:
            code = INTERRUPTED[0]
            raise
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
            raise
        except Exception as error:  # a defect of this package; the other jobs still run
            traceback.print_exc()
            message = f"{type(error).__name__}: {' '.join(str(error).split())}"
        finally:
            seconds, why = time.monotonic() - began, "interrupted" if code in INTERRUPTED else message
            write_record(self.folder, Record(job.number, job.label, code, seconds, job.output, why, scores))
        if message:
            print(f"error: job {job.number} ({job.label}): {message}", file=sys.stderr, flush=True)
        if code in INTERRUPTED:
            raise SystemExit(code)
        return code

    def finish(self) -> int:
        """Prints and writes the table of all jobs, and returns the largest exit code."""
        records = [read_record(self.folder, job.number) or self._not_run(job) for job in self.jobs]
        print_table(records)
        table = write_table(self.folder, records)
        clear_records(self.folder)
        good = sum(record.exit == 0 for record in records)
        print(f"{good} of {len(records)} jobs succeeded: {table}", flush=True)
        return max(1 if record.exit is None else record.exit for record in records)

    def _not_run(self, job: Job) -> Record:
        return Record(job.number, job.label, None, output=job.output, message="not finished")

    def _place(self, job: Job, cfg: DictConfig) -> None:
        """Sets the output of the job, and its teacher if that is of the same sweep."""
        if self.command.output is not None and job.output is not None:
            OmegaConf.update(cfg, self.command.output, job.output)
        if job.teacher is not None:
            record = read_record(self.folder, job.teacher)
            if record is None or record.exit != 0:
                raise ValueError(f"not run, since job {job.teacher}, its teacher, failed")
            OmegaConf.update(cfg, TEACHER, self.jobs[job.teacher].output)


def run_job(run: Run, cfg: DictConfig) -> int:
    """Runs a job with its composed configuration: imports the plug-ins first, and completes paths."""
    expand_home(cfg)
    with sigterm_raises():
        load_plugins(cfg.plugins)
        return run(cfg)


def _importable(function: Any) -> Any:
    """Returns the function under its module's real name: other processes have another __main__."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if function.__module__ != "__main__" or spec is None:
        return function
    return getattr(importlib.import_module(spec.name), function.__name__)
