"""Lists of files, and what is said of one that cannot be read."""

from pathlib import Path


def list_files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files below `folder`, by their path without suffix relative to it, in sorted order.

    Raises:
        ValueError: the folder is missing, has no such file, or has two that differ in the suffix only.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder (looked from {Path.cwd()})")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            raise ValueError(f"{path} and {found[stem].name} have the same stem: remove one of them")
        found[stem] = path
    if not found:
        raise ValueError(f"{folder}: no file with suffix {', '.join(suffixes)}")
    return found


def reason(error: BaseException) -> str:
    """The first line of what went wrong, without the path that the caller names anyway."""
    strerror = getattr(error, "strerror", None)  # "Permission denied" without the path a second time
    return str(strerror or str(error) or type(error).__name__).strip().split("\n", 1)[0]
