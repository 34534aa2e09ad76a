"""Which jobs a sweep has (`-m seed=0,1`), where they write, and which are the teachers of others.

All are composed before the first one starts: an unknown setting or choice in any of them is found first. The
values of a job are checked as it starts.
"""

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import hydra
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from depthany.config.groups import config_dir, search_path
from depthany.config.paths import with_home
from depthany.config.sweep import TEACHER, Command, Job, Sweep
from depthany.config.words import plain_key
from depthany.system.launch import launched_ranks

LONGEST_SUFFIX = 120  # characters; a file name has 255 bytes at most


@dataclass(frozen=True)
class _Composed:
    """A job without its output path yet: its configuration, and its values of the swept settings."""

    cfg: DictConfig
    values: dict[str, str]

    def without(self, key: str) -> dict[str, str]:
        """The values of the other settings."""
        return {name: value for name, value in self.values.items() if name != key}


def plan_sweep(command: Command, words: Sequence[str]) -> Sweep:
    """Returns the jobs of a sweep.

    Jobs that would write to the same place get a suffix of the values in which they differ, such as
    outputs/teacher_seed=0. A job that needs a teacher, and for which the user names none, takes the model of
    the job that differs only in its stage.

    Args:
        words: overrides of the command line, in Hydra's grammar.

    Raises:
        ValueError: jobs write to the same place by the user's choice, a teacher comes after its student, or
            the sweep cannot be started in this way.
        HydraException: a job cannot be composed.
    """
    if launched_ranks()[1] > 1:
        raise ValueError(
            "-m starts one run after another, each on one process: leave out torchrun, or start it once for "
            "each run"
        )
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        overrides = parser.parse_overrides(list(words))
        of_hydra = [each.input_line or "" for each in overrides if _is_hydras(each.key_or_group)]
        of_jobs = [each for each in overrides if not _is_hydras(each.key_or_group)]
        swept = [each.get_key_element() for each in of_jobs if each.is_sweep_override()]
        jobs = [
            _compose(command.name, of_hydra, each, i, swept)
            for i, each in enumerate(BasicSweeper.split_arguments(of_jobs, None)[0])
        ]
    given = {plain_key(each.get_key_element()) for each in of_jobs}
    hydras = jobs[0].cfg.hydra
    if not hydras.sweeper._target_.endswith(f".{BasicSweeper.__name__}") or hydras.sweeper.params:
        raise ValueError("a sweep is written on the command line, as in -m seed=0,1: leave out hydra.sweeper")
    outputs = _outputs(command.output, jobs, given)
    placed = [
        Job(i, " ".join(f"{key}={value}" for key, value in job.values.items()) or "as given", output)
        for i, (job, output) in enumerate(zip(jobs, outputs, strict=True))
    ]
    if TEACHER not in given:
        placed = _with_teachers(placed, jobs)
    if hydras.launcher._target_.rpartition(".")[2] != BasicLauncher.__name__:
        _require_no_teachers(placed)
    return Sweep(command, tuple(placed), Path(hydras.sweep.dir).absolute())


def _is_hydras(key: str) -> bool:
    return key.startswith(("hydra.", "hydra/"))


def _compose(
    name: str, of_hydra: Sequence[str], overrides: list[str], number: int, swept: Sequence[str]
) -> _Composed:
    """Composes a job as Hydra will; ${hydra:job.num} has its value."""
    cfg = hydra.compose(name, [search_path(), *of_hydra, *overrides], return_hydra_config=True)
    with read_write(cfg.hydra), open_dict(cfg.hydra):
        cfg.hydra.job.num, cfg.hydra.job.id = number, str(number)
    given = {
        each.get_key_element(): each.value() for each in OverridesParser.create().parse_overrides(overrides)
    }
    values = {plain_key(key): "null" if given[key] is None else str(given[key]) for key in swept}
    return _Composed(cfg, values)


def _outputs(setting: str | None, jobs: Sequence[_Composed], given: set[str]) -> list[str | None]:
    """Returns where each job writes, all of them different."""
    if setting is None:
        return [None] * len(jobs)
    outputs = [_resolved(job.cfg, setting) for job in jobs]
    for place, members in _by_place(outputs).items():
        if len(members) == 1:
            continue
        if setting in given:
            numbers = " and ".join(map(str, members))
            key = next(iter(jobs[members[0]].values), "seed")
            raise ValueError(
                f"{setting}={place}: jobs {numbers} would write there; add what differs to it, as in "
                f"{setting}='{place}_${{{key}}}', or leave {setting} out"
            )
        for i, suffix in zip(members, _suffixes([jobs[i].values for i in members]), strict=True):
            outputs[i] = f"{place}_{suffix}"
    return outputs


def _resolved(cfg: DictConfig, setting: str) -> str | None:
    """Returns the value of a setting of a composed job, None if it lacks one."""
    HydraConfig.instance().set_config(cfg)
    value = OmegaConf.select(cfg, setting, throw_on_missing=False)
    return None if value is None else with_home(str(value))


def _by_place(outputs: Sequence[str | None]) -> Mapping[str, list[int]]:
    """Returns the positions of the jobs that write to each place."""
    first_name, members = dict[str, str](), defaultdict[str, list[int]](list)
    for i, output in enumerate(outputs):
        if output is not None:
            members[first_name.setdefault(os.path.abspath(output), output)].append(i)
    return members


def _suffixes(values: Sequence[Mapping[str, str]]) -> list[str]:
    """Returns names of jobs by the values in which they differ, such as seed=0, or by their position."""
    keys = [key for key in values[0] if len({each[key] for each in values}) > 1]
    names = [re.sub(r"[^\w.=+-]+", "-", "_".join(f"{key}={each[key]}" for key in keys)) for each in values]
    if len(set(names)) < len(names) or max(map(len, names)) > LONGEST_SUFFIX:
        return [f"job={i}" for i in range(len(values))]
    return names


def _with_teachers(placed: Sequence[Job], jobs: Sequence[_Composed]) -> list[Job]:
    """Returns the jobs with those that are the teachers of others.

    Raises:
        ValueError: a teacher comes after its student.
    """
    teachers = {
        frozenset(job.without("stage").items()): i
        for i, job in enumerate(jobs)
        if "stage" in job.values and OmegaConf.select(job.cfg, "stage.name") == "teacher"
    }
    found = list(placed)
    for i, job in enumerate(jobs):
        needs = OmegaConf.select(job.cfg, TEACHER) is not None
        if not needs or (teacher := teachers.get(frozenset(job.without("stage").items()))) is None:
            continue
        if teacher > i:
            raise ValueError(
                f"job {i} ({placed[i].label}) is before its teacher: write stage=teacher,student"
            )
        found[i] = replace(placed[i], teacher=teacher)
    return found


def _require_no_teachers(placed: Sequence[Job]) -> None:
    """Raises a ValueError if a job of a sweep on a cluster needs another one."""
    for job in placed:
        if job.teacher is not None:
            raise ValueError(
                f"hydra/launcher runs all jobs at the same time, and job {job.number} ({job.label}) needs "
                f"the model of job {job.teacher} as its teacher: start the teachers first, then the students"
            )
