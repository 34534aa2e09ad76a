"""Turns the words of a command line into overrides in Hydra's grammar, with paths taken literally."""

import os
import re
from collections.abc import Mapping, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from depthany.config.paths import is_path

# Hydra's flags, and whether a value follows.
FLAGS = {
    "--help": "no",
    "-h": "no",
    "--hydra-help": "no",
    "--version": "no",
    "--cfg": "yes",
    "-c": "yes",
    "--resolve": "no",
    "--package": "yes",
    "-p": "yes",
    "--run": "no",
    "-r": "no",
    "--multirun": "no",
    "-m": "no",
    "--shell-completion": "no",
    "-sc": "no",
    "--config-path": "yes",
    "-cp": "yes",
    "--config-name": "yes",
    "-cn": "yes",
    "--config-dir": "yes",
    "-cd": "yes",
    "--experimental-rerun": "yes",
    "--info": "perhaps",
    "-i": "perhaps",
}
HELP = ("--help", "-h")
PRINTING = (*HELP, "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc")
CFG = ("--cfg", "-c")
CFG_CHOICES = ("job", "hydra", "all")
BROKEN_REFERENCE = (
    r"${...} refers to another setting, such as ${seed}, and this one cannot be read; if a name itself "
    r"contains ${, write \${"
)
MULTIRUN = ("--multirun", "-m")
OPEN = ("stage.terms",)  # mappings to which the user may add keys; they are checked by their dataclass


def hydra_words(
    words: Sequence[str], several: tuple[str, ...] = (), aliases: Mapping[str, str] | None = None
) -> list[str]:
    """Returns the words for Hydra: its flags first, then overrides that its grammar reads as they were meant.

    Hydra's grammar gives characters like ( [ , = # a meaning, accepts only ASCII letters, and reads 2024_01
    as a number. A path is put into Hydra's quotes, and so is every other text that Hydra could not read.

    Args:
        words: words of the command line.
        several: settings that take one or several texts, `a,b`, literally, as paths are.
        aliases: other names of settings, for names that Hydra would take for one of its groups.

    Raises:
        ValueError: a word is no setting, or cannot be read.
    """
    flags, overrides = split_flags(words)
    sweeps = has_flag(flags, MULTIRUN)
    known = aliases or {}
    literal = [_added(_literal(_renamed(word, known), several, sweeps)) for word in overrides]
    for word in literal:
        if parsed(word).is_sweep_override() and not sweeps:
            key, _, value = word.partition("=")
            raise ValueError(
                f"{word}: several values are for -m, which runs the command with each of them; a list is "
                f"written '{key}=[{value}]'"
            )
        _check_references(word)
    return flags + literal


def split_flags(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns Hydra's flags with their values, and the other words: Hydra finds no flags between overrides.

    Raises:
        ValueError: a word begins with a dash and is no flag, or the value of a flag is missing.
    """
    flags, others, rest = list[str](), list[str](), list(words)
    while rest:
        word = rest.pop(0)
        flag, equals, _ = word.partition("=")
        follows = rest[0] if rest else ""
        if not word.startswith("-"):
            others.append(word)
        elif flag not in FLAGS:
            raise ValueError(_dashed(word, follows))
        else:
            flags.append(word)
            is_value = bool(follows) and not follows.startswith("-")
            if FLAGS[flag] == "yes" and not equals:
                if not is_value:
                    choices = f" ({', '.join(CFG_CHOICES)})" if flag in CFG else ""
                    raise ValueError(f"{flag} needs a value{choices}")
                flags.append(rest.pop(0))
            elif FLAGS[flag] == "perhaps" and is_value and "=" not in follows:
                flags.append(rest.pop(0))
    for value in flag_values(flags, CFG):
        if value not in CFG_CHOICES:
            raise ValueError(f"unknown --cfg {value!r}; choose from {', '.join(CFG_CHOICES)}")
    return flags, others


def has_flag(words: Sequence[str], names: Sequence[str]) -> bool:
    """Whether one of the flags is among the words."""
    return any(word.partition("=")[0] in names for word in words)


def flag_values(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """Returns the values of a flag, written as `--flag value` or `--flag=value`."""
    found, rest = list[str](), iter(words)
    for word in rest:
        flag, equals, value = word.partition("=")
        if flag in names:
            found.append(value if equals else next(rest, ""))
    return found


def parsed(word: str) -> Override:
    """Returns an override as Hydra reads it.

    Raises:
        ValueError: it cannot be read; the message does not speak of Hydra's grammar.
    """
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        raise ValueError(_why_refused(word)) from None


def quoted(value: str) -> str:
    """Returns a text in Hydra's quotes, which keep it literal; ${...} stays a reference."""
    doubled = re.sub(r"(\\+)(?='|$)", r"\1\1", value)  # a backslash escapes only before a quote
    escaped = doubled.replace("'", "\\'")
    return f"'{escaped}'"


def plain_key(key: str) -> str:
    """Returns the name of a setting without Hydra's signs for adding and removing."""
    return key.lstrip("+~")


def _check_references(word: str) -> None:
    """Raises ValueError for a ${ in the value that is not a reference to another setting."""
    try:
        OmegaConf.create({"value": parsed(word).value()})
    except GrammarParseError:
        raise ValueError(f"{word}: {BROKEN_REFERENCE}") from None
    except OmegaConfBaseException:
        return  # a sweep: each of its values is checked with its job


def _renamed(word: str, aliases: Mapping[str, str]) -> str:
    """Returns the override with the real name of its setting."""
    key, equals, value = word.partition("=")
    return f"{aliases.get(key, key)}{equals}{value}"


def _added(word: str) -> str:
    """Returns the override with Hydra's sign for adding a key, if it is below a mapping in `OPEN`."""
    key = word.partition("=")[0]
    return f"++{word}" if any(f"{key}.".startswith(f"{mapping}.") for mapping in OPEN) else word


def _literal(word: str, several: tuple[str, ...], sweeps: bool) -> str:
    """Returns the override, in Hydra's quotes where its value is a path, or a text that Hydra cannot read."""
    key, equals, value = word.partition("=")
    if not equals or not value or key.startswith("~"):
        return word
    name = plain_key(key)
    takes_list = name in several or name.startswith("data.")  # a set of the user's may have several roots
    if is_path(name) or name in several:
        return f"{key}={_literal_value(key, value, takes_list, sweeps)}"
    if _readable(word) or value[0] in "[{":
        return word
    return f"{key}={_each_quoted(value) if sweeps else quoted(value)}"


def _literal_value(key: str, value: str, takes_list: bool, sweeps: bool) -> str:
    """Returns the value of a path, or of several texts. What exists under its whole name is one path."""
    if value.lower() == "null":
        return value
    if os.path.lexists(os.path.expanduser(value)):
        return quoted(value)
    read = _readable(f"{key}={value}")
    if read is not None and _keeps(read, value, takes_list, sweeps):
        return value
    return _each_quoted(value) if sweeps else quoted(value)


def _keeps(read: Override, value: str, takes_list: bool, sweeps: bool) -> bool:
    """Whether a value is written in Hydra's grammar on purpose: in quotes, as a list, or as a sweep."""
    chosen = read.value()
    if not read.is_sweep_override():
        return value[0] in "'\"" or (takes_list and isinstance(chosen, list))
    if isinstance(chosen, ChoiceSweep) and chosen.simple_form:
        return sweeps and all(isinstance(each, QuotedString) for each in chosen.list)
    return sweeps  # a function, such as glob(*)


def _each_quoted(value: str) -> str:
    """Returns several values, with commas between them, each in quotes."""
    parts = [part.strip() for part in value.split(",")]
    return ",".join(part if part.lower() == "null" else quoted(part) for part in parts)


def _readable(word: str) -> Override | None:
    """Returns an override as Hydra reads it, None if it cannot."""
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None


def _dashed(word: str, follows: str) -> str:
    """Returns the message about a setting that is written as a flag."""
    key, equals, value = word.lstrip("-").replace("-", "_").partition("=")
    if equals:
        value = word.partition("=")[2]
    elif follows and not follows.startswith("-") and "=" not in follows:
        value = follows
    return f"{word}: settings are key=value, without dashes: {key or 'key'}={value or '...'}"


def _why_refused(word: str) -> str:
    """Returns the message about an override that Hydra cannot read."""
    key, equals, _ = word.partition("=")
    if not equals:
        return f"{word!r} is not a setting: settings are key=value, and --help lists them"
    if _readable(f"{key}=1") is None:
        return f"{word}: the name of a setting has the letters a to z, digits, _ and dots, not {key!r}"
    return (
        f"{word}: its brackets, braces or quotes do not match; put a text with such characters into "
        f"quotes: \"{key}='...'\""
    )
