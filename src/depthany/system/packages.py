"""Optional packages, and the reason of an error in one line."""

import importlib
from typing import Any


class MissingPackage(ValueError):
    """A package is not installed. This is not a bad file: images are never skipped for it."""


def optional(module: str, purpose: str, extra: str | None = None) -> Any:
    """Imports a module of an optional package.

    Args:
        purpose: what needs it, such as "reading OpenEXR files".
        extra: name of the extra of depthany that installs it, and what else it needs.

    Raises:
        MissingPackage: it is not installed. The message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        how = f"pip install {package}" if extra is None else how_to_install(extra)
        raise MissingPackage(f"{purpose} needs the package {package}: {how}") from None


def how_to_install(extra: str) -> str:
    """Returns the command that installs the packages of an extra, in a checkout or without one."""
    return f"pip install 'depthany[{extra}]'"


def reason(error: BaseException) -> str:
    """Returns the first line of an error's message, without the path, which the caller names."""
    strerror = getattr(error, "strerror", None)  # "Permission denied", without the path
    return str(strerror or str(error) or type(error).__name__).strip().split("\n", 1)[0]
