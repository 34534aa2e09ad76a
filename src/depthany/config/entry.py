"""Turns a command line into a configuration and a job, or a sweep of jobs, and an error into one line."""

import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from depthany.config.errors import OF_THE_USER, exit_code_of, one_line
from depthany.config.given import note_given
from depthany.config.groups import config_dir
from depthany.config.help_page import help_page
from depthany.config.sweep import Command, Run, Scores, run_job
from depthany.config.sweep_plan import plan_sweep
from depthany.config.sweep_table import clear_records
from depthany.config.words import HELP, MULTIRUN, PRINTING, has_flag, hydra_words, quoted, split_flags
from depthany.system.files import bundled, if_exists
from depthany.system.launch import is_alone
from depthany.system.signals import Terminated

__all__ = ["config_dir", "flat", "plain", "run_entry"]


def _below(folder: str | None, name: str) -> str | None:
    """Resolves ${below:${data.unlabeled_root},LSUN}: a path, or null where the folder is null."""
    return None if folder is None else f"{folder}/{name}"


def _of_stage(*, _root_: DictConfig) -> str:
    """Resolves ${of_stage:} in a defaults list to <experiment>_<stage>, such as sample_metric.

    A sweep over stages composes once without a stage, which then is null.
    """
    names = (
        None if OmegaConf.is_missing(_root_, key) else _root_.get(key) for key in ("experiment", "stage")
    )
    return "_".join(map(str, names))


OmegaConf.register_new_resolver("below", _below, replace=True)
OmegaConf.register_new_resolver("of_stage", _of_stage, replace=True)
# A path of the configuration, not of the user
OmegaConf.register_new_resolver("bundled", bundled, replace=True)
OmegaConf.register_new_resolver("if_exists", if_exists, replace=True)


def run_entry(
    config_name: str,
    job: Run,
    help_with: tuple[str, ...] = (),
    several: tuple[str, ...] = (),
    aliases: Mapping[str, str] | None = None,
    output: str | None = "out",
    scores: Scores | None = None,
    sweeps: bool = True,
) -> int:
    """Composes `configs/<config_name>.yaml` with the overrides in `sys.argv`, imports plugins, runs `job`.

    With -m it runs `job` for each combination of the values of the settings that have several; see `Sweep`.

    An error that the user can correct (a setting, a file) ends in one line on stderr and exit code 2, or the
    error's own `exit_code`.
    DEPTHANY_TRACEBACK=1 shows where it was raised. Any other exception is a defect of this package and keeps
    its traceback.

    Args:
        help_with: overrides that `--help` adds where the user chooses nothing of their group. Without them it
            has no settings to show.
        several: settings that take one or several texts, `a,b`, literally; see `hydra_words`.
        aliases: folders of configs/ that are not Hydra groups, with the setting that names their files. On
            the command line the name of the folder stands for the setting, too.
        output, scores: output and scores of a job in a sweep; see `Command`.
        sweeps: whether the command can run several times, one after another.

    Returns:
        The exit code.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises exceptions instead of printing them
    try:
        sys.argv[1:] = hydra_words(sys.argv[1:], several, aliases)
        if has_flag(sys.argv, PRINTING):
            return _print_settings(config_name, help_with, aliases or {})
        if not has_flag(sys.argv, MULTIRUN):
            return _run_once(config_name, job)
        if not sweeps:
            raise ValueError("-m is for commands that end by themselves: start this one once for each model")
        return _run_sweep(Command(config_name, job, output, scores))
    except BrokenPipeError:  # the reader of our output, such as `head`, has stopped
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is printed at the exit
        return 141
    except OF_THE_USER as error:
        if os.environ.get("DEPTHANY_TRACEBACK") == "1":
            raise
        if is_alone() or _should_report(error):
            print(f"error: {one_line(error, config_name)}", file=sys.stderr)
        return exit_code_of(error)
    except KeyboardInterrupt as stop:  # the training loop handles its signals itself
        is_term = isinstance(stop, Terminated)
        print(
            f"{'terminated' if is_term else 'interrupted'}; files saved before are complete", file=sys.stderr
        )
        return 143 if is_term else 130


def _should_report(error: Exception) -> bool:
    """Whether this process of several prints its error; see `distributed.should_report`."""
    from depthany.system.distributed import should_report  # imports torch

    return should_report(error)


def _print_settings(config_name: str, help_with: tuple[str, ...], folders: Mapping[str, str]) -> int:
    """Prints the help, or lets Hydra print the configuration; returns exit code 0."""
    if has_flag(sys.argv, HELP):
        given = split_flags(sys.argv[1:])[1]
        chosen = {word.partition("=")[0] for word in given}
        added = [word for word in help_with if word.partition("=")[0] not in chosen]
        print(help_page(config_name, [*given, *added], folders))
    else:
        _start(config_name, lambda _: None)
    return 0


def _run_once(config_name: str, job: Run) -> int:
    """Runs the job with the configuration, after Hydra has ended; returns its exit code."""
    composed = list[DictConfig]()

    def keep(cfg: DictConfig) -> None:
        note_given()
        composed.append(cfg)

    _start(config_name, keep)
    return run_job(job, composed[0])


def _run_sweep(command: Command) -> int:
    """Runs all jobs of the sweep, prints and writes the table, and returns the largest exit code."""
    sweep = plan_sweep(command, split_flags(sys.argv[1:])[1])
    sys.argv.append(f"hydra.sweep.dir={quoted(str(sweep.folder))}")  # its name holds the time
    clear_records(sweep.folder)
    logging.getLogger("hydra").setLevel(logging.WARNING)  # `Sweep` says which job begins
    try:
        _start(command.name, sweep)
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "submitit":
            raise
        print(f"error: a job ended without a result: {' '.join(str(error).split())}", file=sys.stderr)
    finally:
        code = sweep.finish()
    return code


def _start(config_name: str, task: Callable[[DictConfig], Any]) -> None:
    """Lets Hydra call `task` with the configuration, or with that of each job of a sweep."""
    hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(task)()


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Returns the configuration as plain dicts and lists, with interpolations resolved."""
    container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def flat(settings: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested settings by their dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves
