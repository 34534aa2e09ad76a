"""Reads the comments of settings from their YAML files."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml


class SettingComments:
    """The comments of all settings of a composition, by dotted key.

    A comment stands beside its setting, and goes on in lines below that are indented further, or it stands
    above the setting, at its column. The comment at the top of a file is about the file.

    Args:
        files: package (the dotted key below which its settings lie) and path of each file, and whether it
            overrides the values of others, as an experiment does. The comment of the first file counts.
    """

    def __init__(self, files: Iterable[tuple[str, Path, bool]]) -> None:
        self._beside, self._above = dict[str, str](), dict[str, list[str]]()
        self._values, self._changes = dict[str, str](), dict[str, str]()
        for package, path, overrides in files:
            text = path.read_text(encoding="utf-8")
            prefix, lines = f"{package}." if package else "", text.splitlines()
            seen = set[int]()  # lines; in {a: 1, b: 2}  # a comment, it is that of the first key
            for key, line, column, value in _keys(yaml.compose(text, yaml.SafeLoader)):
                full = f"{prefix}{key}"
                is_first = line not in seen
                seen.add(line)
                if is_first and not self.has(full):
                    self._beside[full] = _comment_beside(lines, line, column)
                    self._above[full] = _comment_above(lines, line, column)
                if value is not None and overrides and self._values.get(full, value) != value:
                    of = f"{path.parent.name}/{path.name}"
                    self._changes[full] = f"({of}; without it {self._values[full]})"
                elif value is not None:
                    self._values.setdefault(full, value)

    def has(self, key: str) -> bool:
        """Whether the setting has a comment."""
        return bool(self._beside.get(key) or self._above.get(key))

    def above(self, key: str) -> list[str]:
        """Returns the lines of the comment that stands above the setting."""
        return self._above.get(key, [])

    def beside(self, key: str) -> str:
        """Returns the comment beside a setting, with the file that changed its value."""
        return f"{self._beside.get(key, '')} {self._changes.get(key, '')}".strip()


def _keys(node: Any, prefix: str = "") -> Iterator[tuple[str, int, int, str | None]]:
    """Yields dotted key, line, column and scalar of all settings below a YAML node, but those of `hydra`."""
    if not isinstance(node, yaml.MappingNode):
        return
    for name, value in node.value:
        if not prefix and name.value in ("defaults", "hydra"):
            continue
        scalar = value.value if isinstance(value, yaml.ScalarNode) else None
        yield f"{prefix}{name.value}", name.start_mark.line, name.start_mark.column, scalar
        yield from _keys(value, f"{prefix}{name.value}.")


def _comment_beside(lines: list[str], at: int, column: int) -> str:
    """Returns the comment in the line of a key and in the lines below that are indented further."""
    _, sign, first = lines[at].partition(" #")
    words = [first.strip()] if sign else []
    for line in lines[at + 1 :] if sign else []:
        text = line.lstrip()
        if not text.startswith("#") or len(line) - len(text) <= column + 2:
            break
        words.append(text.lstrip("#").strip())
    return " ".join(words)


def _comment_above(lines: list[str], at: int, column: int) -> list[str]:
    """Returns the lines of the comment right above a key, at its column; not that at the top of a file."""
    found = list[str]()
    first = at
    while first > 0 and lines[first - 1].startswith(f"{' ' * column}#"):
        first -= 1
        found.insert(0, lines[first][column:].removeprefix("#").removeprefix(" "))
    return found if first > 0 else []
