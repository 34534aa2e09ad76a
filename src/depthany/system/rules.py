"""Rules of settings dataclasses: a field says which values it may hold, and one function checks them all.

    @dataclass
    class ReadingSettings:
        batch_size: int = setting(least=1)
        order: str = setting(choices=ORDERS)

The same dataclass is the schema of the YAML file (`config.checker.check_settings`). Where an object needs
exactly these values, it is the object's arguments, too (`check_fields` in its `__post_init__`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import MISSING


@dataclass(frozen=True)
class Rule:
    """Which values a setting may hold. `None` is always allowed; of a list, every element is checked.

    Attributes:
        least, most: smallest and largest allowed value.
        above, below: bounds that the value must not reach.
        length: number of elements of a list.
        choices: allowed values: a tuple, or a table whose keys they are. A table may grow after the rule
            was made (`plugins`), so it is read when a value is checked.
        words: whether several choices may be given, as `a,b` or as a list.
        filled: whether an empty text is refused. As the path of an output it would be the current folder.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    length: int | None = None
    choices: Iterable[str | bool] | None = None
    words: bool = False
    filled: bool = False

    def check(self, key: str, value: Any) -> None:
        """Raises ValueError if `value`, that of the setting `key`, is not allowed."""
        if value is None:
            return
        if self.filled and isinstance(value, str) and not value.strip():
            raise ValueError(f"{key}= is empty: expected a path (. is the current folder)")
        if self.words:
            value = split_words(key, value)
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        if self.length is not None and len(value) != self.length:
            raise ValueError(f"{key}={list(value)}: expected {self.length} numbers")
        for element in value if is_list else [value]:
            if self.choices is not None and element not in self.choices:
                known = ", ".join(map(_shown, self.choices))
                raise ValueError(f"unknown {key} {element!r}; choose from {known}")
            if not self._is_within(element):
                raise ValueError(f"{key}={list(value) if is_list else value}: expected {self._range()}")

    def _is_within(self, value: float) -> bool:
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def _range(self) -> str:
        """Returns the allowed range in words."""
        if self.least is not None and self.most is not None:
            return f"{self.least} to {self.most}"
        named = {
            "at least": self.least,
            "more than": self.above,
            "less than": self.below,
            "at most": self.most,
        }
        given = [f"{words} {bound}" for words, bound in named.items() if bound is not None]
        return f"{self.least} or more" if given == [f"at least {self.least}"] else " and ".join(given)


def setting(
    default: Any = MISSING,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    length: int | None = None,
    choices: Iterable[str | bool] | None = None,
    words: bool = False,
    filled: bool = False,
) -> Any:
    """Returns a dataclass field with a `Rule`.

    Args:
        default: value of the field. Without one the configuration must give a value.
    """
    rule = Rule(least, most, above, below, length, choices, words, filled)
    return field(default=default, metadata={"rule": rule})


def rules(settings: Any) -> Mapping[str, Rule]:
    """Returns the rules of a settings dataclass, or of an instance of one, by field name."""
    return {each.name: each.metadata["rule"] for each in fields(settings) if "rule" in each.metadata}


def check_fields(settings: Any) -> None:
    """Raises ValueError if a field of a dataclass instance breaks its rule; for `__post_init__`."""
    for name, rule in rules(settings).items():
        rule.check(name, getattr(settings, name))


def _shown(choice: str | bool) -> str:
    """Returns a choice as it is written in a YAML file."""
    return str(choice).lower() if isinstance(choice, bool) else choice


def split_words(key: str, value: Any) -> list[str]:
    """Returns the words of the setting `key`, given as `a,b` or as a list.

    Raises:
        ValueError: there is no word.
    """
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, Sequence) else []
    if isinstance(value, Mapping):
        parts = [value]
    words = [word for part in parts if (word := str(part).strip())]
    if not words:
        raise ValueError(f"{key}={value}: expected one or more values, with commas between them")
    return words
