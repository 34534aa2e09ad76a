"""Find what is wrong with data sets before training does: `python -m depthany.check_data data=...`."""

import inspect
import re
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from depthany.checking.readers import Readers
from depthany.checking.report import PROBLEMS_FILE, REPORT_FILE, show, write_files
from depthany.checking.summary import SetSummary
from depthany.config.entry import require_least, run_entry, typed
from depthany.config.schema import CheckDataSettings
from depthany.display.progress import Bar
from depthany.system.files import require_writable
from depthany.system.processes import cores

GROUPS = ("labeled", "val", "unlabeled")


def run(cfg: DictConfig) -> int:
    """Check every set of `cfg.data` that has a root; the exit code."""
    cfg = check(cfg)
    out = Path(cfg.out)
    require_writable(out)
    announce(cfg.data)
    sets, summaries = open_sets(cfg.data)
    interrupted, complete = False, False
    try:
        read_all(cfg, sets, summaries)
        complete = True
    except KeyboardInterrupt:
        interrupted = True
        checked = sum(each.checked for each in summaries.values())
        wanted = sum(each.wanted for each in summaries.values())
        print(f"interrupted: {checked} of {wanted} images were checked", file=sys.stderr)
    finally:  # after a process was killed, too
        show(summaries)
        about = {key: cfg[key] for key in ("limit", "seed", "min_valid_share")}
        about |= {"complete": complete, "convert_images": cfg.data.convert_images}
        write_files(out, summaries, about)
    wrong = any(summary.is_wrong for summary in summaries.values())
    verdict = "problems were found" if wrong else "all is well" if complete else "nothing is wrong so far"
    print(f"{verdict}: {out / REPORT_FILE}, {out / PROBLEMS_FILE}")
    return 130 if interrupted else int(wrong)


def check(cfg: DictConfig) -> DictConfig:
    """The configuration with its types checked.

    Raises:
        ValueError: (or one of OmegaConf's errors) a setting has a wrong type or a value that cannot be, or no
            set has a root.
    """
    cfg = typed(cfg, CheckDataSettings)
    require_least(cfg, {"limit": 1, "workers": 1, "seed": 0, "sheet_images": 0})
    if not 0 <= cfg.min_valid_share <= 1:
        raise ValueError(f"min_valid_share={cfg.min_valid_share}: expected a share between 0 and 1")
    for group in GROUPS:
        for name, entry in cfg.data[group].items():
            if not OmegaConf.is_dict(entry) or "_target_" not in entry:
                raise ValueError(
                    f"data.{group}.{name}: expected a data set with a _target_, as in configs/dataset"
                )
    if not entries(cfg.data):
        wanted = " ".join(f"data.{group}.{name}.root=..." for group in GROUPS for name in cfg.data[group])
        raise ValueError(f"no set has a root: give one of {wanted or 'another data=...'}")
    return cfg


def entries(data: DictConfig) -> dict[str, DictConfig]:
    """Every set of the mixture that has a root (or none to have), by `group.name`."""
    return {
        f"{group}.{name}": entry
        for group in GROUPS
        for name, entry in data[group].items()
        if not OmegaConf.is_missing(entry, "root") and entry.get("root", "") is not None
    }


def announce(data: DictConfig) -> None:
    """Say which sets are listed, which takes a while for large ones, and which are not."""
    every = [f"{group}.{name}" for group in GROUPS for name in data[group]]
    rooted = entries(data)
    if rootless := [name for name in every if name not in rooted]:
        print(f"without a root, not checked: {', '.join(rootless)}")
    print(f"listing {', '.join(rooted)}", flush=True)


def open_sets(data: DictConfig) -> tuple[dict[str, Any], dict[str, SetSummary]]:
    """The data sets, and an empty summary of each; one that cannot be opened has a summary alone."""
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
    """Whether the set can name files without partner instead of refusing all."""
    try:
        arguments = inspect.signature(get_class(entry._target_)).parameters.values()
    except ImportError:  # of which `instantiate` tells more
        return False
    return any(each.name == "allow_incomplete" or each.kind is each.VAR_KEYWORD for each in arguments)


def read_all(cfg: DictConfig, sets: dict[str, Any], summaries: dict[str, SetSummary]) -> None:
    """Read the images of all sets, add what is found to their summaries, and write the contact sheets."""
    drawn = {name: draw_indices(len(dataset), cfg.limit, cfg.seed, name) for name, dataset in sets.items()}
    for name, indices in drawn.items():
        summaries[name].wanted = len(indices)
        if (found := len(sets[name])) > len(indices):
            print(f"{name}: {len(indices)} of {found} images, drawn with seed={cfg.seed}", flush=True)
    with Readers(sets, cfg.workers or cores(), cfg.data.convert_images, cfg.min_valid_share) as readers:
        for name, indices in drawn.items():
            with Bar(name, len(indices)) as bar:
                for chunk in readers.check(name, indices):
                    summaries[name].add(chunk.indices, chunk.findings, chunk.depth)
                    bar.advance(len(chunk.findings))
            if chosen := sheet_indices(indices, summaries[name], cfg.sheet_images, cfg.seed):
                title = f"{name}: {len(chosen)} of {summaries[name].found} images in {summaries[name].root}"
                readers.draw(name, chosen, sheet_path(Path(cfg.out), name), title)
        readers.finish_sheets()


def draw_indices(count: int, limit: int | None, seed: int, name: str) -> Sequence[int]:
    """All indices below `count`, or `limit` of them at random, in order."""
    if limit is None or limit >= count:
        return range(count)
    return sorted(generator(seed, name).choice(count, limit, replace=False).tolist())


def sheet_indices(indices: Sequence[int], summary: SetSummary, wanted: int, seed: int) -> list[int]:
    """Some of the indices at random, without those that have an error."""
    wanted *= 1 if summary.labeled else 3
    candidates = generator(seed + 1, summary.root).choice(
        len(indices), min(len(indices), 8 * wanted), replace=False
    )
    good = [indices[int(i)] for i in candidates if indices[int(i)] not in summary.bad]
    return sorted(good[:wanted])


def generator(seed: int, name: str) -> np.random.Generator:
    """Random numbers of a set's own, so that another set in the mixture does not change its draw."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def sheet_path(out: Path, name: str) -> Path:
    """Where the contact sheet of a set goes."""
    return out / f"contact_{re.sub(r'[^a-zA-Z0-9_-]', '_', name)}.jpg"


def main() -> None:
    """Console script `depthany-check-data`."""
    sys.exit(run_entry("check_data", run, literal=("out",)))


if __name__ == "__main__":
    main()
