"""The command `check_data`: reads data sets and reports what is wrong with them."""

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from depthany.checking.read_sets import read_sets
from depthany.checking.readers import Readers
from depthany.checking.report import PROBLEMS_FILE, REPORT_FILE, show, write_files
from depthany.checking.summary import SetSummary
from depthany.config.checker import check_settings
from depthany.config.schema import CommandSettings
from depthany.data.mixture import DataSettings
from depthany.system.files import require_own_results, require_writable
from depthany.system.processes import cores
from depthany.system.rules import setting
from depthany.system.sample import require_sample

GROUPS = ("labeled", "val", "unlabeled")


@dataclass
class CheckDataSettings(CommandSettings):
    """configs/check_data.yaml with its group."""

    out: str = setting(filled=True)
    limit: int | None = setting(None, least=1)
    seed: int = setting(least=0)
    min_valid_share: float = setting(least=0, most=1)
    sheet_images: int = setting(least=0)
    workers: int | None = setting(None, least=1)
    data: DataSettings = field(default_factory=DataSettings)


def run(cfg: DictConfig) -> int:
    """Checks every set of `cfg.data` that has a root; returns the exit code."""
    cfg = check(cfg)
    out = Path(cfg.out)
    require_writable(out)
    require_own_results(out, REPORT_FILE, "sets", (PROBLEMS_FILE,))
    announce(cfg.data)
    sets, summaries = open_sets(cfg.data)
    interrupted, complete = False, False
    try:
        options = cfg.data.convert_images, cfg.min_valid_share, cfg.data.min_side
        with Readers(sets, cfg.workers or cores(), *options) as readers:
            read_sets(sets, summaries, out, readers, cfg.limit, cfg.seed, cfg.sheet_images)
        complete = True
    except KeyboardInterrupt:
        interrupted = True
        checked = sum(each.checked for each in summaries.values())
        wanted = sum(each.wanted for each in summaries.values())
        print(f"interrupted: {checked} of {wanted} images were checked", file=sys.stderr)
    finally:  # also after a process was killed
        about = {key: cfg[key] for key in ("limit", "seed", "min_valid_share")}
        about |= {"complete": complete, "convert_images": cfg.data.convert_images}
        write_files(out, summaries, about)
        show(summaries)
    wrong = any(summary.is_wrong for summary in summaries.values())
    print(f"{verdict(summaries, complete)}: {out / REPORT_FILE}, {out / PROBLEMS_FILE}")
    return 130 if interrupted else int(wrong)


def verdict(summaries: Mapping[str, SetSummary], complete: bool) -> str:
    """Returns the result in a few words. Warnings alone are no error, but then not all is well."""
    if any(summary.is_wrong for summary in summaries.values()):
        return "problems were found"
    if not complete:
        return "nothing is wrong so far"
    warnings = sum(summary.warning_count() for summary in summaries.values())
    return f"no error, and {warnings} warning{'s' * (warnings > 1)} to look at" if warnings else "all is well"


def check(cfg: DictConfig) -> DictConfig:
    """Returns the configuration with the types of `CheckDataSettings`.

    Raises:
        ValueError: a setting is unknown or has a value that is not allowed, or no set has a root.
        omegaconf.ValidationError: a value has the wrong type.
    """
    cfg = check_settings(cfg, CheckDataSettings, optional=("data",))
    for group in GROUPS:
        for name, entry in cfg.data[group].items():
            if not OmegaConf.is_dict(entry) or "_target_" not in entry:
                raise ValueError(
                    f"data.{group}.{name}: expected a data set with a _target_, as in configs/dataset"
                )
    require_sample(
        (entry.get("root") for entry in entries(cfg.data).values()),
        "your own images need no sample: data=folder data.labeled.mine.root=FOLDER",
    )
    if not entries(cfg.data):
        wanted = " ".join(f"data.{group}.{name}.root=..." for group in GROUPS for name in cfg.data[group])
        raise ValueError(f"no set has a root: give one of {wanted or 'another data=...'}")
    return cfg


def entries(data: DictConfig) -> dict[str, DictConfig]:
    """Returns the sets of the mixture that have a root, or that need none, by `group.name`."""
    return {
        f"{group}.{name}": entry
        for group in GROUPS
        for name, entry in data[group].items()
        if not OmegaConf.is_missing(entry, "root") and entry.get("root", "") is not None
    }


def announce(data: DictConfig) -> None:
    """Prints which sets are going to be listed, which takes a while for large ones, and which are not."""
    every = [f"{group}.{name}" for group in GROUPS for name in data[group]]
    rooted = entries(data)
    if rootless := [name for name in every if name not in rooted]:
        print(f"without a root, not checked: {', '.join(rootless)}")
    print(f"listing {', '.join(rooted)}", flush=True)


def open_sets(data: DictConfig) -> tuple[dict[str, Any], dict[str, SetSummary]]:
    """Returns the opened data sets, and an empty summary of each, also of those that cannot be opened."""
    sets, summaries = dict[str, Any](), dict[str, SetSummary]()
    for name, entry in entries(data).items():
        root, expected = str(entry.get("root", "")), entry.get("expected")
        more = {"allow_incomplete": True} if may_be_incomplete(entry) else {}
        try:
            sets[name] = instantiate(entry, **more)
        except InstantiationException as error:
            if not isinstance(error.__cause__, ValueError | OSError):
                raise
            summaries[name] = SetSummary(root, failure=" ".join(str(error.__cause__).split()))
        else:
            expected = getattr(sets[name], "expected", expected)
            summaries[name] = SetSummary(root, sets[name], expected=expected)
    return sets, summaries


def may_be_incomplete(entry: DictConfig) -> bool:
    """Whether the set can list files without partner instead of raising an error."""
    try:
        arguments = inspect.signature(get_class(entry._target_)).parameters.values()
    except ImportError:  # `instantiate` reports it in more detail
        return False
    return any(each.name == "allow_incomplete" or each.kind is each.VAR_KEYWORD for each in arguments)
