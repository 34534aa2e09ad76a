"""Packages that some kinds of file need, and the reason of an error in one line."""

import importlib
from typing import Any


class MissingPackage(ValueError):
    """A package is not installed: of no file's making, so that no file is left out for it."""


def optional(module: str, purpose: str) -> Any:
    """A module of a package that not everybody needs.

    Args:
        purpose: what needs it, such as "reading OpenEXR files".

    Raises:
        MissingPackage: it is not installed; with the command that does.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise MissingPackage(f"{purpose} needs the package {package}: pip install {package}") from None


def reason(error: BaseException) -> str:
    """The first line of what went wrong, without the path that the caller names anyway."""
    strerror = getattr(error, "strerror", None)  # "Permission denied" without the path a second time
    return str(strerror or str(error) or type(error).__name__).strip().split("\n", 1)[0]
