"""Turns an exception that the user can correct into one readable line."""

import re

import yaml
from hydra.errors import HydraException, InstantiationException
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from depthany.config.checker import unknown_setting
from depthany.config.groups import choices, known_keys
from depthany.config.words import BROKEN_REFERENCE
from depthany.system.packages import how_to_install

# A setting or a file that the user can correct. Any other exception is a defect of this package.
OF_THE_USER = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, OSError)


def exit_code_of(error: Exception) -> int:
    """Returns the exit code after an error that the user can correct: its own `exit_code`, else 2."""
    return int(getattr(error, "exit_code", 2))


def one_line(error: Exception, config_name: str) -> str:
    """Returns the message of an error in one line, with the remedy where Hydra's own words lack it."""
    text = str(error)
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, ValueError):
        return f"{text.rpartition('full_key: ')[2]}: {error.__cause__}"  # without Hydra's own words
    if isinstance(error, GrammarParseError) or isinstance(error.__cause__, GrammarParseError):
        return _broken_reference(error)
    if found := re.search(r"Could not override '([^']+)'", text):
        return unknown_setting(found[1], known_keys(config_name))
    if found := re.search(r"You must specify '(\w+)'", text):
        return f"choose a {found[1]}: {found[1]}={'|'.join(choices(found[1]))}"
    if found := re.search(r"Could not find 'hydra/launcher/(submitit\w*)'", text):
        package = f"the package hydra-submitit-launcher: {how_to_install('submitit')}"
        return f"hydra/launcher={found[1]} needs {package}"
    if found := re.search(r"(?:Could not find|In '[^']*': Could not find) '([\w./]+)'", text):
        group, _, name = found[1].rpartition("/")
        return f"unknown {group} {name!r}; choose from {', '.join(choices(group))}"
    if key := getattr(error, "full_key", None):
        return f"{key}: {text.splitlines()[0]}"
    return re.sub(r"\s+", " ", text).strip() or type(error).__name__


def _broken_reference(error: Exception) -> str:
    """Returns the message about a ${ that OmegaConf cannot read."""
    key = getattr(error, "full_key", None)
    return f"{key}: {BROKEN_REFERENCE}" if key else BROKEN_REFERENCE
