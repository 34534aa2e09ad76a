"""Imports modules of the user that add rows to the tables of this package: `plugins=[my_project.depth]`."""

import importlib
import traceback
from collections.abc import Sequence


def load_plugins(names: Sequence[str]) -> None:
    """Imports the modules, in order; a module that was imported before is not run again.

    Args:
        names: dotted names of modules.

    Raises:
        ValueError: `names` is no list, a module does not exist, or importing it fails.
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ValueError(f"plugins={names}: expected a list of modules, such as plugins=[my_project.depth]")
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise ValueError(f"plugins: {name} {_reason(error)}") from error
            raise ValueError(
                f"plugins: no module named {error.name}: install the project that holds {name} (pip install "
                "-e .), or add its folder to PYTHONPATH"
            ) from error
        except Exception as error:  # whatever code of the user's raises
            raise ValueError(f"plugins: {name} {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Returns what failed, and in which line of which file."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    words = " ".join(str(error).split())
    return f"cannot be imported: {type(error).__name__}: {words} ({frame.filename}, line {frame.lineno})"
