"""Finds protocols and their data sets by name, pattern or file: configs/protocol and files of the user."""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from depthany.config.entry import config_dir, plain
from depthany.data.targets import require_metres
from depthany.evaluation.protocol import Protocol
from depthany.metrics.table import METRICS
from depthany.system.sample import lacks_sample, no_sample

FARTHEST_M = 1e6  # no camera sees farther: all ground truth is known
FOLDER_SET = "depthany.data.folder_depth.FolderDepth"  # the reader where a protocol names none
_FOLDER_SETS = (FOLDER_SET, "depthany.data.labeled.FolderDepth")  # and its name up to version 0.1


@dataclass(frozen=True)
class Chosen:
    """A protocol, the settings of its data set, and what the user changed in it.

    by_pattern: whether `all` or a pattern matched it, rather than its own name.
    """

    protocol: Protocol
    dataset: dict[str, Any]
    changed: dict[str, Any]
    by_pattern: bool = False

    def open(self) -> Any:
        """Returns the data set.

        Raises:
            ValueError: the set is not complete, does not have the protocol's number of images, or its labels
                are not depth in metres.
        """
        try:
            dataset = instantiate(self.dataset)
        except Exception as error:
            if isinstance(error.__cause__, ValueError):
                raise ValueError(f"protocol {self.protocol.name}: {error.__cause__}") from error
            raise
        if self.protocol.task == "depth":
            require_metres(dataset, f"protocol {self.protocol.name}")
        if self.protocol.task == "classes" and getattr(dataset, "unit", "m") != "class":
            raise ValueError(
                f"protocol {self.protocol.name}: its labels are not classes: name a reader of masks, such as "
                "dataset: {_target_: depthany.data.folder_masks.FolderMasks, root: ..., classes_file: ...}"
            )
        if self.protocol.count is not None and len(dataset) != self.protocol.count:
            raise ValueError(
                f"protocol {self.protocol.name} has {self.protocol.count} images, but "
                f"{self.dataset.get('root')} has {len(dataset)}: complete it, or score what is there with "
                f"override.count={len(dataset)}"
            )
        return dataset

    def range_of_truth(self, dataset: Any) -> tuple[float, float]:
        """Returns the nearest and the farthest true depth in metres that can count."""
        high = self.protocol.max_depth
        if high is None:
            high = float(getattr(dataset, "max_depth", float("inf")))
        return self.protocol.min_depth or 0.0, high


def protocol_names() -> list[str]:
    """Returns the names of the protocols that come with the package."""
    return sorted(path.stem for path in (config_dir() / "protocol").glob("*.yaml"))


def choose(
    words: list[str], roots: DictConfig, override: DictConfig, folder: DictConfig | None = None
) -> tuple[list[Chosen], dict[str, str]]:
    """Returns the chosen protocols, and why others that `all` or a pattern matches were left out.

    Args:
        words: names, patterns such as sample_*, paths of YAML files, or all.
        roots: where data sets lie, null where the user has none.
        override: settings for every protocol; null keeps the protocol's own.
        folder: settings of `FolderDepth` for the protocols of a user's folder that leave them open.

    Raises:
        ValueError: a name is unknown, a protocol has an unknown setting, or the data of a protocol that was
            named is not there.
    """
    chosen: dict[str, Chosen] = {}
    missing: dict[str, str] = {}
    given = {str(key): value for key, value in (folder or {}).items() if value is not None}
    for word in words:
        several = word == "all" or "*" in word
        for source in _sources(word):
            one = load_protocol(source, roots, override)
            one = replace(one, dataset=_completed(one.dataset, given), by_pattern=several)
            if one.protocol.name in chosen:
                raise ValueError(f"protocol {one.protocol.name} is named twice")
            why = _why_missing(one, source, roots)
            if why is None:
                chosen[one.protocol.name] = one
            elif several:
                missing[one.protocol.name] = why
            else:
                raise ValueError(f"protocol {one.protocol.name}: {why}")
    for key, value in given.items():
        if not any(_is_folder(one.dataset) and one.dataset.get(key) == value for one in chosen.values()):
            raise ValueError(
                f"folder.{key}={value}: no chosen protocol leaves it open; it is for protocols=folder and "
                "files of your own"
            )
    if not chosen:
        reasons = dict.fromkeys(missing.values())  # the same one once, such as that there is no sample
        names = {why: ", ".join(name for name in missing if missing[name] == why) for why in reasons}
        raise ValueError(f"no protocol has its data: {'; '.join(f'{names[why]}: {why}' for why in reasons)}")
    return list(chosen.values()), missing


def leave_out_unfit(
    chosen: Sequence[Chosen], spaces: Mapping[str, str]
) -> tuple[list[Chosen], dict[str, str]]:
    """Returns the protocols under which all predictors can be scored, and why others were left out.

    A pattern such as sample_* also matches protocols of metres, which a model of disparity leaves out.

    Args:
        spaces: space of each predictor, disparity or depth, by label.

    Raises:
        ValueError: a protocol that was named takes metres and a predictor has none, or no protocol is left.
    """
    fit, unfit = list[Chosen](), dict[str, str]()
    for one in chosen:
        try:
            for label, space in spaces.items():
                one.protocol.require_fits(space, label)
        except ValueError as error:
            if not one.by_pattern:
                raise
            unfit[one.protocol.name] = str(error)
        else:
            fit.append(one)
    if not fit:
        raise ValueError(next(iter(unfit.values())))
    return fit, unfit


def _sources(word: str) -> list[str]:
    if word.endswith((".yaml", ".yml")):
        if not Path(word).is_file():
            raise ValueError(f"protocols={word}: no such file (looked from {Path.cwd()})")
        return [word]
    names = protocol_names()
    found = fnmatch.filter(names, "*" if word == "all" else word)
    if not found:
        raise ValueError(
            f"unknown protocol {word!r}; choose from all, {', '.join(names)}, or the path of a .yaml file"
        )
    return found


def load_protocol(source: str, roots: DictConfig, override: DictConfig) -> Chosen:
    """Returns a protocol by its name or the path of its file, with the user's roots and changes.

    Raises:
        ValueError: the file is not a protocol in YAML, or a setting is unknown, has a wrong type, or has a
            value that is not allowed.
    """
    path = _file_of(source)
    written = _read(path)
    dataset = written.pop("dataset", None) or {}
    start = OmegaConf.merge(OmegaConf.structured(Protocol), {"name": path.stem})
    settings = _checked(start, written, f"protocol {path}: ")
    given = {str(key): value for key, value in override.items() if value is not None}
    original = _build(settings, roots)
    protocol = _build(_checked(settings, given, "override."), roots) if given else original
    changed = {
        key: getattr(protocol, key) for key in given if getattr(protocol, key) != getattr(original, key)
    }
    plain_dataset = plain(OmegaConf.create({"roots": roots, "dataset": dataset}))["dataset"]
    return Chosen(protocol, _with_defaults(plain_dataset, protocol), changed)


def _read(path: Path) -> DictConfig:
    try:
        written = OmegaConf.load(path)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ValueError(f"protocol {path}: {' '.join(str(error).split())}") from None
    if not isinstance(written, DictConfig) or not isinstance(written.get("dataset", {}), DictConfig | dict):
        raise ValueError(f"protocol {path}: expected `setting: value` lines, and settings below dataset")
    return written


def _checked(settings: Any, changes: Any, where: str) -> DictConfig:
    """Returns the settings with changes; a key or type that `Protocol` does not have is a `ValueError`."""
    try:
        merged = OmegaConf.merge(settings, changes)
    except OmegaConfBaseException as error:
        reason = " ".join(str(error).split("\n    full_key")[0].split())
        raise ValueError(f"{where}{error.full_key}: {reason}") from None
    assert isinstance(merged, DictConfig)
    return merged


def _build(settings: DictConfig, roots: DictConfig) -> Protocol:
    """Returns the protocol, with its interpolations such as ${roots.nyu} resolved."""
    values: dict[str, Any] = plain(OmegaConf.create({"roots": roots, "protocol": settings}))["protocol"]
    lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    return Protocol(**(values | lists))


def _with_defaults(dataset: dict[str, Any], protocol: Protocol) -> dict[str, Any]:
    """Returns the settings of a set, of a user's folder with its reader and the range of the protocol.

    Farther ground truth stays known where the protocol clips it.
    """
    if not _is_folder(dataset):
        return dataset
    clips = protocol.truth_beyond == "clip" or any(METRICS[name].over == "maps" for name in protocol.metrics)
    range_m = {"min_depth": protocol.min_depth, "max_depth": FARTHEST_M if clips else protocol.max_depth}
    return {"_target_": FOLDER_SET, **{k: v for k, v in range_m.items() if v is not None}, **dataset}


def _is_folder(dataset: dict[str, Any]) -> bool:
    """Whether a set is a user's folder, read by `FolderDepth`."""
    return dataset.get("_target_", FOLDER_SET) in _FOLDER_SETS


def _completed(dataset: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of a set; fills in the given ones that a user's folder leaves open."""
    open_keys = [key for key in given if dataset.get(key) is None] if _is_folder(dataset) else []
    return dataset | {key: given[key] for key in open_keys}


def _why_missing(one: Chosen, source: str, roots: DictConfig) -> str | None:
    """Returns why the data is not there, None if it may be: roots of the user are checked when opened."""
    root = one.dataset.get("root")
    if root is None:
        key = _root_key(source)
        return f"its data is not there: pass {key}=/path/of/it" if key else "its dataset names no root"
    if str(root) not in {str(value) for value in roots.values()} and not Path(root).is_dir():
        return no_sample() if lacks_sample(root) else f"{root}: no such folder (looked from {Path.cwd()})"
    return None


def _file_of(source: str) -> Path:
    is_file = source.endswith((".yaml", ".yml"))
    return Path(source) if is_file else config_dir() / "protocol" / f"{source}.yaml"


def _root_key(source: str) -> str:
    """Returns the setting that a root refers to, such as roots.nyu, "" if it refers to none."""
    fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, and nothing is resolved here
    content = yaml.load(_file_of(source).read_text(encoding="utf-8"), Loader=fast)
    written = str((content.get("dataset") or {}).get("root", "")) if isinstance(content, dict) else ""
    return written.strip("${}") if written.startswith("${roots.") else ""
