"""The bundled sample: a checkout of the repository has it, an installed package alone does not."""

from collections.abc import Iterable
from pathlib import Path

FOLDER = "data/sample"
HOW_TO_GET = (
    "an installed package does not contain the sample: clone depthany's repository and start the command in "
    f"it, or copy its {FOLDER} to here"
)


def lacks_sample(path: object) -> bool:
    """Whether a path, as `bundled` returns it, is in the sample, and the sample is not there."""
    return str(path).startswith(f"{FOLDER}/") and not Path(FOLDER).exists()


def no_sample() -> str:
    """Returns the message about the missing sample."""
    return f"there is no {FOLDER} in {Path.cwd()}: {HOW_TO_GET}"


def require_sample(paths: Iterable[object], instead: str = "") -> None:
    """Raises ValueError if one of the paths is in the sample, and the sample is not there.

    Args:
        instead: what the user can do without the sample.
    """
    if any(map(lacks_sample, paths)):
        raise ValueError(no_sample() + (instead and f"; {instead}"))
