"""What the folders of configuration files hold: that of the package, and the user's (`--config-dir`)."""

import re
import sys
from pathlib import Path

import hydra

from depthany.config.checker import nested_keys
from depthany.config.words import flag_values, quoted


def config_dir() -> Path:
    """Returns configs/ of the installed package, or of the checkout that the package is run from."""
    package = Path(__file__).resolve().parents[1]
    return next(folder for folder in (package / "configs", package.parents[1] / "configs") if folder.is_dir())


def config_dirs() -> list[Path]:
    """Returns the folders of configuration files: that of the package, and the user's (`--config-dir`)."""
    given = flag_values(sys.argv[1:], ("--config-dir", "-cd"))
    return [config_dir(), *(Path(folder).resolve() for folder in given)]


def search_path() -> str:
    """Returns the override with which `hydra.compose` finds the user's folders, too."""
    folders = (quoted(f"file://{folder}") for folder in config_dirs()[1:])
    return f"hydra.searchpath=[{','.join(folders)}]"


def choices(group: str) -> list[str]:
    """Returns the names of the YAML files of a group."""
    return sorted({path.stem for folder in config_dirs() for path in (folder / group).glob("*.yaml")})


def known_keys(config_name: str) -> list[str]:
    """Returns all keys of a command, with the groups chosen on the command line, and all groups."""
    given = [
        re.fullmatch(r"([\w/]+)=(\w+)(?:,\w+)*", word) for word in sys.argv[1:]
    ]  # of a sweep the first one
    chosen = [f"{found[1]}={found[2]}" for found in given if found and found[2] in choices(found[1])]
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        known = nested_keys(hydra.compose(config_name, [*chosen, search_path()]))
    return known + sorted({path.name for folder in config_dirs() for path in folder.glob("*/")})
