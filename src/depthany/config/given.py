"""The settings that the user gave on the command line of the job that runs."""

from hydra.core.hydra_config import HydraConfig

from depthany.config.words import hydra_words, parsed

_words = list[str]()


def note_given() -> None:
    """Keeps the words of the job that Hydra is about to run, for `given_words`."""
    _words[:] = HydraConfig.get().overrides.task


def given_words() -> list[str]:
    """Returns the user's settings as words such as "data.labeled.mine.root=a folder", not quoted for a shell.

    It is empty where no command runs.
    """
    return [_as_typed(word) for word in _words]


def _as_typed(word: str) -> str:
    """Returns a word without Hydra's quotes if it means the same without them."""
    key, _, value = word.partition("=")
    read = parsed(word).value() if value.startswith("'") else None
    if not isinstance(read, str):
        return word
    plain = f"{key}={read}"
    try:
        return plain if hydra_words([plain]) == [word] else word
    except ValueError:
        return word
