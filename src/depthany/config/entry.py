"""From the command line to a configuration, and from an exception to one readable line."""

import difflib
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import hydra
import yaml
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf, SCMode
from omegaconf.errors import OmegaConfBaseException

from depthany.system.distributed import has_the_word
from depthany.system.signals import Terminated, sigterm_raises

T = TypeVar("T")


def _below(folder: str | None, name: str) -> str | None:
    """${below:${data.unlabeled_root},LSUN} in a configuration: a path, or null where the folder is null."""
    return None if folder is None else f"{folder}/{name}"


OmegaConf.register_new_resolver("below", _below, replace=True)


def config_dir() -> Path:
    """configs/ of the installed package, or of the checkout that the package is run from."""
    package = Path(__file__).resolve().parents[1]
    return next(folder for folder in (package / "configs", package.parents[1] / "configs") if folder.is_dir())


def run_entry(
    config_name: str,
    job: Callable[[DictConfig], int],
    help_with: tuple[str, ...] = (),
    literal: tuple[str, ...] = (),
    aliases: Mapping[str, str] | None = None,
) -> int:
    """Compose `configs/<config_name>.yaml` with the overrides in `sys.argv` and run `job` on it.

    What the user can mend (a setting, a file) ends in one line on stderr and exit code 2;
    DEPTHANY_TRACEBACK=1 shows where it came from. Anything else is a defect of ours and keeps its traceback.

    Args:
        help_with: overrides without which `--help` has nothing to show, where the user gives none of that
            group.
        literal: settings whose value is taken as it stands, such as paths: Hydra's grammar has a meaning for
            letters like ( [ , = and no place for those beyond ASCII.
        aliases: words that stand for a setting, where Hydra would take them for one of its groups.

    Returns:
        The exit code.
    """
    sys.argv[1:] = [_quoted(_renamed(word, aliases or {}), literal) for word in sys.argv[1:]]
    if {"--help", "-h"} & set(sys.argv):
        given = {word.partition("=")[0] for word in sys.argv}
        sys.argv += [word for word in help_with if word.partition("=")[0] not in given]
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # exceptions come to us instead of being printed by Hydra
    composed: list[DictConfig] = []
    compose = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)
    try:
        compose(composed.append)()
        with sigterm_raises():
            return job(composed[0]) if composed else 0  # --help and --cfg compose nothing to run
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, OSError) as error:
        if os.environ.get("DEPTHANY_TRACEBACK") == "1":
            raise
        if has_the_word(error):
            print(f"error: {_one_line(error, config_name)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:  # not of the training loop, which has a handler of its own
        is_term = isinstance(stop, Terminated)
        print(
            f"{'terminated' if is_term else 'interrupted'}; what was saved before is whole", file=sys.stderr
        )
        return 143 if is_term else 130


def _renamed(word: str, aliases: Mapping[str, str]) -> str:
    key, equals, value = word.partition("=")
    return f"{aliases.get(key, key)}{equals}{value}"


def _quoted(word: str, keys: tuple[str, ...]) -> str:
    """The override in Hydra's quotes if it sets one of the keys, to no list and without quotes of its own."""
    key, equals, value = word.partition("=")
    is_list = value.startswith("[") and value.endswith("]")
    if key not in keys or not value or value[0] in "'\"" or is_list or value == "null":
        return word
    doubled = re.sub(r"(\\+)(?='|$)", r"\1\1", value)  # only before a quote is a backslash not itself
    escaped = doubled.replace("'", "\\'")
    return f"{key}{equals}'{escaped}'"


def typed(cfg: DictConfig, schema: type) -> DictConfig:
    """The configuration, checked: a type that the dataclass does not have, or a key, is refused."""
    checked = OmegaConf.merge(OmegaConf.structured(schema), cfg)
    assert isinstance(checked, DictConfig)
    return checked


def as_dataclass(cfg: DictConfig, schema: type[T]) -> T:
    """Returns the configuration as an object of a dataclass, whose `__post_init__` checks the values.

    Raises:
        ValueError: (or one of OmegaConf's errors) a key is unknown, a type is wrong, or a value is missing or
            refused.
    """
    structured = OmegaConf.structured(schema)
    for key in structured:
        if not OmegaConf.is_missing(structured, key) and OmegaConf.is_dict(structured[key]):
            OmegaConf.set_readonly(structured[key], None)  # as OmegaConf sets it for a frozen dataclass
    merged = OmegaConf.merge(structured, cfg)
    made = OmegaConf.to_container(merged, resolve=True, structured_config_mode=SCMode.INSTANTIATE)
    assert isinstance(made, schema)
    return made


def require(cfg: DictConfig, ignore: tuple[str, ...] = ()) -> None:
    """Raise a `ValueError` that names every required setting without a value, but for those below
    `ignore`.
    """
    missing = sorted(key for key in OmegaConf.missing_keys(cfg) if not key.startswith(ignore or ("\0",)))
    if missing:
        raise ValueError("these settings need a value: " + " ".join(f"{key}=..." for key in missing))


def require_least(cfg: DictConfig, least: Mapping[str, float]) -> None:
    """Raise a `ValueError` for a setting (dotted key; None is fine) that is below its smallest value."""
    for key, smallest in least.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and value < smallest:
            raise ValueError(f"{key}={value}: expected {smallest} or more")


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain dicts and lists, interpolations resolved."""
    container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def flat(settings: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def _one_line(error: Exception, config_name: str) -> str:
    text = str(error)
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, ValueError):
        return f"{text.rpartition('full_key: ')[2]}: {error.__cause__}"  # Hydra's words about ours left out
    if found := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(found[1], config_name)
    if found := re.search(r"You must specify '(\w+)'", text):
        return f"choose a {found[1]}: {found[1]}={'|'.join(_choices(found[1]))}"
    if found := re.search(r"(?:Could not find|In '[^']*': Could not find) '([\w./]+)'", text):
        group, _, name = found[1].rpartition("/")
        return f"unknown {group} {name!r}; choose from {', '.join(_choices(group))}"
    if key := getattr(error, "full_key", None):
        return f"{key}: {text.splitlines()[0]}"
    return re.sub(r"\s+", " ", text).strip() or type(error).__name__


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def _unknown_key(key: str, config_name: str) -> str:
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        groups = [
            word for word in sys.argv[1:] if re.fullmatch(r"(stage|data|model|perturb|experiment)=\w+", word)
        ]
        known = OmegaConf.to_container(hydra.compose(config_name, groups), resolve=False)
    assert isinstance(known, dict)
    near = difflib.get_close_matches(key, flat(known), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "--help lists all"
    return f"unknown setting {key!r}; {hint}"
