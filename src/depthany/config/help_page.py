"""The page of `--help`: how to start a command, what can be chosen, and its settings with their comments."""

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from omegaconf import DictConfig, OmegaConf

from depthany.config.groups import choices, config_dir, config_dirs, search_path
from depthany.config.setting_comments import SettingComments

COLUMN = 33  # of the comments
LONGEST = 46  # characters of a setting that has its comment in the same line
OF_HYDRA = ("hydra", "defaults")


def help_page(config_name: str, words: Sequence[str], folders: Mapping[str, str]) -> str:
    """Returns the page of a command with the settings that the given words choose.

    Args:
        folders: folders of configs/ that are not Hydra groups, with the setting that names their files.

    Raises:
        HydraException: the words cannot be composed.
    """
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = hydra.compose(config_name, [*words, search_path()], return_hydra_config=True)
    width = max(80, shutil.get_terminal_size((120, 24)).columns)
    comments = SettingComments(_files(config_name, cfg.hydra.runtime.choices))
    parts = [cfg.hydra.help.header.rstrip(), ""]
    shows = "name=choice; with --help it shows the settings of that choice"
    parts += _choices(f"Choices ({shows})", own_groups(config_name), width)
    for folder, setting in folders.items():
        parts += _choices(f"Names for {setting}= (files in configs/{folder}/)", {folder: setting}, width)
    parts.append("== Settings (key=value) ==")
    settings = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in OF_HYDRA])
    parts += _lines(settings, comments, width, {})
    return "\n".join([*parts, "", cfg.hydra.help.footer.rstrip()])


def _choices(heading: str, groups: Mapping[str, str], width: int) -> Iterator[str]:
    """Yields the lines of a section with the names of the files in some folders of configs/.

    Args:
        groups: settings that name the files, by folder.
    """
    if groups:
        yield f"== {heading} =="
        for folder, setting in groups.items():
            start = f"{setting}: "
            yield _wrapped(start, ", ".join(choices(folder)), " " * len(start), width)
        yield ""


def own_groups(config_name: str) -> dict[str, str]:
    """Returns the groups that the user of a command chooses from, in the order of its YAML file."""
    read = yaml.safe_load((config_dir() / f"{config_name}.yaml").read_text(encoding="utf-8"))
    entries = [entry for entry in read["defaults"] if isinstance(entry, dict)]
    names = [str(name) for entry in entries for name in entry]
    return {name: name for name in names if not name.startswith("optional ")}


def _files(config_name: str, chosen: Mapping[str, str | None]) -> Iterator[tuple[str, Path, bool]]:
    """Yields package and path of the YAML files of a composition, and whether a file overrides others."""
    yield from (("", config_dir() / f"{name}.yaml", False) for name in ("command", config_name))
    overriding = list[Path]()
    for key, name in chosen.items():
        group, _, package = key.partition("@")
        if group.startswith("hydra/") or name is None:
            continue
        paths = [folder / group / f"{name}.yaml" for folder in config_dirs()]
        for path in (path for path in paths if path.is_file()):
            header = path.read_text(encoding="utf-8").split("\n", 1)[0].partition("@package ")[2].strip()
            if header == "_global_":
                overriding.append(path)
            else:
                yield package or header or group.replace("/", "."), path, False
    order = {"stage": 0, "experiment": 2, "experiment_of_stage": 3}  # a later one overrides an earlier one
    for path in sorted(overriding, key=lambda path: order.get(path.parent.name, 1)):
        yield "", path, True


def _lines(
    node: DictConfig, comments: SettingComments, width: int, shown: dict[str, str], prefix: str = ""
) -> Iterator[str]:
    """Yields the lines of settings, in the form of a YAML file.

    Args:
        shown: the first data set of each class, by its dotted key; for others only the differences are shown.
    """
    indent = "  " * prefix.count(".")
    for name in map(str, node):
        key = f"{prefix}{name}"
        yield from (f"{indent}# {line}".rstrip() for line in comments.above(key))
        nested = _nested(node, name)
        kind = None if nested is None else nested.get("_target_")
        if nested is not None and kind in shown:
            text = f"{indent}{name}: {_inline(_different(nested, shown[kind]))}"
            yield from _commented(text, f"the rest as {shown[kind]}", width)
        elif nested is not None and _has_comments(nested, comments, key):
            yield from _commented(f"{indent}{name}:", comments.beside(key), width)
            shown |= {kind: key} if kind else {}
            yield from _lines(nested, comments, width, shown, f"{key}.")
        else:
            yield from _commented(f"{indent}{name}: {_value(node, name)}", comments.beside(key), width)


def _nested(node: DictConfig, name: str) -> DictConfig | None:
    """Returns the settings that a setting holds; None if it holds a value, none, or a reference."""
    if OmegaConf.is_missing(node, name) or OmegaConf.is_interpolation(node, name):
        return None
    return node[name] if isinstance(node[name], DictConfig) and node[name] else None


def _has_comments(node: DictConfig, comments: SettingComments, key: str) -> bool:
    """Whether one of the settings below has a comment, so that each of them needs a line."""
    for name in map(str, node):
        nested = _nested(node, name)
        if comments.has(f"{key}.{name}") or (nested and _has_comments(nested, comments, f"{key}.{name}")):
            return True
    return False


def _different(node: DictConfig, other: str) -> dict[str, Any]:
    """Returns the settings in which a set differs from the set with another key, as they are written."""
    mine, theirs = (
        OmegaConf.to_container(node),
        OmegaConf.to_container(OmegaConf.select(node._get_root(), other)),
    )
    assert isinstance(mine, dict) and isinstance(theirs, dict)
    return {str(key): value for key, value in mine.items() if key not in theirs or theirs[key] != value}


def _value(node: DictConfig, name: str) -> str:
    """Returns a value as it is written in YAML; references to other settings stay references."""
    container = OmegaConf.to_container(OmegaConf.masked_copy(node, [name]))
    assert isinstance(container, dict)
    return _inline(container[name])


def _inline(value: Any) -> str:
    if isinstance(value, str) and ("${" in value or value == "???"):
        return value
    return (
        yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)
        .removesuffix("...\n")
        .strip()
    )


def _commented(text: str, comment: str, width: int) -> Iterator[str]:
    """Yields a setting with its comment beside it, or below it where the setting is long."""
    following = f"{' ' * COLUMN}# "
    if not comment:
        yield text
    elif len(text) <= LONGEST:
        yield _wrapped(f"{text:<{COLUMN - 1}} # ", comment, following, width)
    else:
        yield text
        yield _wrapped(following, comment, following, width)


def _wrapped(start: str, text: str, following: str, width: int) -> str:
    """Returns a text in lines of this width, which begin with `start`, and after the first `following`."""
    return textwrap.fill(
        text, width, initial_indent=start, subsequent_indent=following, break_on_hyphens=False
    )
