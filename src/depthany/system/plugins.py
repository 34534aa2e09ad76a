"""Imports modules of the user that add rows to the tables of this package: `plugins=[my_project.depth]`."""

import importlib
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path

_loaded: list[str] = []


def load_plugins(names: Sequence[str]) -> None:
    """Imports the modules, in order; a module that was imported before is not run again.

    Args:
        names: dotted names of modules. They are looked for in the current folder, too.

    Raises:
        ValueError: `names` is not a list, a module does not exist, or importing it fails.
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ValueError(f"plugins={names}: expected a list of modules, such as plugins=[my_project.depth]")
    here = str(Path.cwd())
    if names and here not in sys.path:
        # `python -m` puts it there, an installed command does not. An empty entry, which means the current
        # folder, would be another folder in a spawned process if this process has changed its own.
        sys.path.append(here)
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise ValueError(f"plugins: {name} {_reason(error)}") from error
            raise ValueError(
                f"plugins: no module named {error.name} in {', '.join(_searched())}, or among the installed "
                f"packages: install the project that holds {name} (pip install -e .), or add its folder to "
                "PYTHONPATH"
            ) from error
        except Exception as error:  # the user's code may raise anything
            raise ValueError(f"plugins: {name} {_reason(error)}") from error
        if name not in _loaded:
            _loaded.append(name)


def loaded_plugins() -> list[str]:
    """Returns the names of the modules that `load_plugins` has imported in this process, in order."""
    return list(_loaded)


def missing_plugins(names: Iterable[str]) -> list[str]:
    """Returns those of the modules, named by a checkpoint for example, that have not been imported."""
    return [name for name in names if name not in _loaded]


def _searched() -> list[str]:
    """Returns the folders in which Python looks for modules, without those of Python and its packages."""
    own = {Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix)}
    folders = dict.fromkeys(Path(path or ".").resolve() for path in sys.path)
    return [str(folder) for folder in folders if own.isdisjoint((folder, *folder.parents))]


def _reason(error: Exception) -> str:
    """Returns what failed, and in which line of which file."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    words = " ".join(str(error).split())
    return f"cannot be imported: {type(error).__name__}: {words} ({frame.filename}, line {frame.lineno})"
