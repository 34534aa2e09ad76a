"""Finds protocols and their data sets by name, pattern or file, in configs/protocol and the user's files."""

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from depthany.config.entry import config_dir, plain
from depthany.evaluation.protocol import Protocol

FOLDER_SET = "depthany.data.labeled.FolderDepth"  # class of a data set without _target_


@dataclass(frozen=True)
class ProtocolFile(Protocol):
    """A protocol and the settings of its data set: the schema of configs/protocol and of a user's file."""

    dataset: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Chosen:
    """A protocol, the settings of its data set, and what the user changed in it."""

    protocol: Protocol
    dataset: dict[str, Any]
    changed: dict[str, Any]

    def open(self) -> Any:
        """Opens the data set.

        Raises:
            ValueError: files are missing, or it has not as many images as the protocol says.
        """
        try:
            dataset = instantiate(self.dataset)
        except Exception as error:
            if isinstance(error.__cause__, ValueError):
                raise ValueError(f"protocol {self.protocol.name}: {error.__cause__}") from error
            raise
        if self.protocol.count is not None and len(dataset) != self.protocol.count:
            raise ValueError(
                f"protocol {self.protocol.name} is of {self.protocol.count} images, and "
                f"{self.dataset.get('root')} gives {len(dataset)}: complete it, or score what is there with "
                f"override.count={len(dataset)}"
            )
        return dataset


def protocol_names() -> list[str]:
    """Returns the names of the protocols of the package."""
    return sorted(path.stem for path in (config_dir() / "protocol").glob("*.yaml"))


def choose(words: list[str], roots: DictConfig, override: DictConfig) -> tuple[list[Chosen], dict[str, str]]:
    """Returns the chosen protocols, and the reason for every one that `all` or a pattern leaves out.

    Args:
        words: names, patterns such as sample_*, paths of YAML files, or all.
        roots: folders of the data sets, null where the user has none.
        override: settings that replace those of every protocol; null keeps the protocol's own.

    Raises:
        ValueError: a name is unknown, a protocol has an unknown setting, or the data of a named one is
            missing.
    """
    chosen: dict[str, Chosen] = {}
    missing: dict[str, str] = {}
    for word in words:
        several = word == "all" or "*" in word
        for source in _sources(word):
            one = load_protocol(source, roots, override)
            if one.protocol.name in chosen:
                raise ValueError(f"protocol {one.protocol.name} is named twice")
            why = _why_missing(one, source, roots)
            if why is None:
                chosen[one.protocol.name] = one
            elif several:
                missing[one.protocol.name] = why
            else:
                raise ValueError(f"protocol {one.protocol.name}: {why}")
    if not chosen:
        raise ValueError(f"no data of any protocol is there: {'; '.join(map(': '.join, missing.items()))}")
    return list(chosen.values()), missing


def _sources(word: str) -> list[str]:
    if word.endswith((".yaml", ".yml")):
        if not Path(word).is_file():
            raise ValueError(f"protocol={word}: no such file (looked from {Path.cwd()})")
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
        ValueError: the file or `override` has an unknown setting or a value of a wrong type.
    """
    path = _file_of(source)
    written = _typed(f"protocol {path}: ", OmegaConf.structured(ProtocolFile), {"name": path.stem}, path)
    given = {str(key): value for key, value in override.items() if value is not None}
    settings = _typed("override.", written, given)
    before = {key: plain(OmegaConf.create({"value": written[key]}))["value"] for key in given}
    resolved = plain(OmegaConf.create({"roots": roots, "protocol": settings}))["protocol"]
    changed = {key: resolved[key] for key in given if resolved[key] != before[key]}
    dataset = _dataset(resolved.pop("dataset"), resolved)
    if resolved["clip_prediction"] is not None:
        resolved["clip_prediction"] = tuple(resolved["clip_prediction"])
    return Chosen(Protocol(**resolved), dataset, changed)


def _typed(where: str, schema: DictConfig, *parts: Any) -> DictConfig:
    """Merges settings, or files of them, into a schema that has their types.

    Raises:
        ValueError: a setting is unknown or has a wrong type; the message begins with `where`.
    """
    try:
        merged = OmegaConf.merge(
            schema, *(OmegaConf.load(part) if isinstance(part, Path) else part for part in parts)
        )
    except (OmegaConfBaseException, yaml.YAMLError, TypeError) as error:
        key = getattr(error, "full_key", None)
        words = " ".join(str(error).split("\n    full_key")[0].split())
        raise ValueError(f"{where}{f'{key}: ' if key else ''}{words}") from None
    assert isinstance(merged, DictConfig)
    return merged


def _dataset(dataset: dict[str, Any], protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of the data set, with the defaults of a user's folder: class and depth range."""
    if dataset.get("_target_", FOLDER_SET) == FOLDER_SET:
        own = {key: protocol[key] for key in ("min_depth", "max_depth") if protocol[key] is not None}
        return {"_target_": FOLDER_SET, **own, **dataset}
    return dataset


def _why_missing(one: Chosen, source: str, roots: DictConfig) -> str | None:
    """Returns why the data is missing, or None. A root that the user gave is checked when it is opened."""
    root = one.dataset.get("root")
    if root is None:
        keys = _root_keys(source)
        return f"its data is not there: pass {keys}=/path/of/it" if keys else "its dataset names no root"
    if str(root) not in {str(value) for value in roots.values()} and not Path(root).is_dir():
        return f"{root}: no such folder (looked from {Path.cwd()})"
    return None


def _file_of(source: str) -> Path:
    is_file = source.endswith((".yaml", ".yml"))
    return Path(source) if is_file else config_dir() / "protocol" / f"{source}.yaml"


def _root_keys(source: str) -> str:
    root = OmegaConf.to_container(OmegaConf.load(_file_of(source)), resolve=False)
    written = str(root.get("dataset", {}).get("root", "")) if isinstance(root, dict) else ""
    return written.strip("${}") if written.startswith("${roots.") else ""
