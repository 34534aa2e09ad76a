"""Turns a command line into a configuration and a job, and an exception into one readable line."""

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from depthany.config.checker import nested_keys, unknown_setting
from depthany.system.distributed import should_report
from depthany.system.files import bundled
from depthany.system.plugins import load_plugins
from depthany.system.signals import Terminated, sigterm_raises

FLAGS_WITH_VALUE = (
    "--config-dir",
    "-cd",
    "--cfg",
    "-c",
    "--package",
    "-p",
    "--config-path",
    "-cp",
    "--config-name",
    "-cn",
)


def _below(folder: str | None, name: str) -> str | None:
    """Resolves ${below:${data.unlabeled_root},LSUN}: a path, or null where the folder is null."""
    return None if folder is None else f"{folder}/{name}"


OmegaConf.register_new_resolver("below", _below, replace=True)
OmegaConf.register_new_resolver(
    "bundled", bundled, replace=True
)  # a path of the configuration, not of the user


def config_dir() -> Path:
    """Returns configs/ of the installed package, or of the checkout that the package is run from."""
    package = Path(__file__).resolve().parents[1]
    return next(folder for folder in (package / "configs", package.parents[1] / "configs") if folder.is_dir())


def run_entry(
    config_name: str,
    job: Callable[[DictConfig], int],
    help_with: tuple[str, ...] = (),
    literal: tuple[str, ...] = (),
    aliases: Mapping[str, str] | None = None,
) -> int:
    """Composes `configs/<config_name>.yaml` with the overrides in `sys.argv`, imports plugins, runs `job`.

    An error that the user can correct (a setting, a file) ends in one line on stderr and exit code 2, or the
    error's own `exit_code`.
    DEPTHANY_TRACEBACK=1 shows where it was raised. Any other exception is a defect of this package and keeps
    its traceback.

    Args:
        help_with: overrides that `--help` adds where the user chooses nothing of their group. Without them it
            has no settings to show.
        literal: settings whose value is taken literally, such as paths. Hydra's grammar gives characters like
            ( [ , = a meaning and accepts only ASCII letters.
        aliases: other names of settings, for names that Hydra would take for one of its groups.

    Returns:
        The exit code.
    """
    words = _flags_first(sys.argv[1:])
    sys.argv[1:] = [_quoted(_renamed(word, aliases or {}), literal) for word in words]
    if {"--help", "-h"} & set(sys.argv):
        given = {word.partition("=")[0] for word in sys.argv}
        sys.argv += [word for word in help_with if word.partition("=")[0] not in given]
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises exceptions instead of printing them
    composed: list[DictConfig] = []
    compose = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)
    try:
        compose(composed.append)()
        if not composed:  # --help and --cfg print and compose nothing to run
            return 0
        with sigterm_raises():
            load_plugins(composed[0].plugins)
            return job(composed[0])
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, OSError) as error:
        if os.environ.get("DEPTHANY_TRACEBACK") == "1":
            raise
        if should_report(error):
            print(f"error: {_one_line(error, config_name)}", file=sys.stderr)
        return getattr(error, "exit_code", 2)
    except KeyboardInterrupt as stop:  # the training loop handles its signals itself
        is_term = isinstance(stop, Terminated)
        print(
            f"{'terminated' if is_term else 'interrupted'}; what was saved before is whole", file=sys.stderr
        )
        return 143 if is_term else 130


def _flags_first(words: Sequence[str]) -> list[str]:
    """Returns the words with Hydra's flags and their values before all overrides; between them, it fails."""
    flags: list[str] = []
    overrides: list[str] = []
    for word in words:
        has_value = bool(flags) and flags[-1] in FLAGS_WITH_VALUE
        (flags if word.startswith("-") or has_value else overrides).append(word)
    return flags + overrides


def _renamed(word: str, aliases: Mapping[str, str]) -> str:
    """Returns the override with the real name of its setting."""
    key, equals, value = word.partition("=")
    return f"{aliases.get(key, key)}{equals}{value}"


def _quoted(word: str, keys: tuple[str, ...]) -> str:
    """Returns the override in Hydra's quotes if it sets one of `keys` to an unquoted text."""
    key, equals, value = word.partition("=")
    is_list = value.startswith("[") and value.endswith("]")
    if key not in keys or not value or value[0] in "'\"" or is_list or value == "null":
        return word
    doubled = re.sub(r"(\\+)(?='|$)", r"\1\1", value)  # a backslash escapes only before a quote
    escaped = doubled.replace("'", "\\'")
    return f"{key}{equals}'{escaped}'"


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Returns the configuration as plain dicts and lists, with interpolations resolved."""
    container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def flat(settings: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested settings by their dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def _one_line(error: Exception, config_name: str) -> str:
    """Returns the message of an error in one line, with the remedy where Hydra's own words lack it."""
    text = str(error)
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, ValueError):
        return f"{text.rpartition('full_key: ')[2]}: {error.__cause__}"  # without Hydra's own words
    if found := re.search(r"Could not override '([^']+)'", text):
        return unknown_setting(found[1], _known_keys(config_name))
    if found := re.search(r"You must specify '(\w+)'", text):
        return f"choose a {found[1]}: {found[1]}={'|'.join(_choices(found[1]))}"
    if found := re.search(r"(?:Could not find|In '[^']*': Could not find) '([\w./]+)'", text):
        group, _, name = found[1].rpartition("/")
        return f"unknown {group} {name!r}; choose from {', '.join(_choices(group))}"
    if key := getattr(error, "full_key", None):
        return f"{key}: {text.splitlines()[0]}"
    return re.sub(r"\s+", " ", text).strip() or type(error).__name__


def _config_dirs() -> list[Path]:
    """Returns the folders of configuration files: that of the package, and the user's (`--config-dir`)."""
    folders, words = [config_dir()], iter(sys.argv[1:])
    for word in words:
        flag, equals, value = word.partition("=")
        if flag in ("--config-dir", "-cd"):
            folders.append(Path(value if equals else next(words, "")).resolve())
    return folders


def _choices(group: str) -> list[str]:
    """Returns the names of the YAML files of a group."""
    return sorted({path.stem for folder in _config_dirs() for path in (folder / group).glob("*.yaml")})


def _known_keys(config_name: str) -> list[str]:
    """Returns all keys of a command, with the groups chosen on the command line, and all groups."""
    folders = _config_dirs()
    chosen = [
        word
        for word in sys.argv[1:]
        if (found := re.fullmatch(r"([\w/]+)=(\w+)", word)) and found[2] in _choices(found[1])
    ]
    chosen.append("hydra.searchpath=[" + ",".join(f"'file://{folder}'" for folder in folders[1:]) + "]")
    with hydra.initialize_config_dir(str(folders[0]), version_base="1.3"):
        known = nested_keys(hydra.compose(config_name, chosen))
    return known + sorted({path.name for folder in folders for path in folder.glob("*/")})
