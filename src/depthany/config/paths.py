"""Which settings hold a path. Their values are taken literally, and a leading ~ is the user's home."""

import os
import re
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from depthany.system.rules import split_words

# By the dotted key. Settings of the user's own data sets are recognised by their last word.
PATHS = re.compile(
    r"(.+\.)?(run_dir|out|root|images|depth|masks|checkpoint|protocols|teacher|verify|inspect|init|pseudo_labels)"
    r"|(.+\.)?\w+_(root|dir|file|path|folder|csv|masks)"
    r"|roots\.\w+"
    r"|(model|stage\.feature_alignment)\.weights"
    r"|hydra\.(run|sweep)\.dir"
)


def is_path(key: str) -> bool:
    """Whether the setting with this dotted key holds a path, or several."""
    return PATHS.fullmatch(key) is not None


def expand_home(settings: DictConfig, prefix: str = "") -> None:
    """Replaces a leading ~ in all paths of the settings by the user's home, in place."""
    for name in map(str, settings):
        key = f"{prefix}{name}"
        if OmegaConf.is_missing(settings, name) or OmegaConf.is_interpolation(settings, name):
            continue
        value = settings[name]
        if isinstance(value, DictConfig):
            expand_home(value, f"{key}.")
        elif is_path(key) and isinstance(value, str) and "~" in value:
            settings[name] = with_home(value)
        elif is_path(key) and isinstance(value, ListConfig):
            settings[name] = [with_home(each) for each in value]


def with_home(value: Any) -> Any:
    """Returns a path, or several with commas between them, with a leading ~ replaced; others as they are."""
    if not isinstance(value, str):
        return value
    whole = os.path.expanduser(value)
    if os.path.lexists(whole):
        return whole
    return ",".join(os.path.expanduser(path) for path in value.split(","))


def split_paths(key: str, value: Any) -> list[str]:
    """Returns the paths of a setting, given as `a,b` or as a list; an existing path may contain commas.

    Raises:
        ValueError: there is none.
    """
    if not isinstance(value, str):
        return split_words(key, value)
    parts, found = value.split(","), list[str]()
    while parts:
        ends = [n for n in range(len(parts), 1, -1) if os.path.lexists(",".join(parts[:n]))]
        count = ends[0] if ends else 1
        found.append(",".join(parts[:count]))
        parts = parts[count:]
    return split_words(key, found)
