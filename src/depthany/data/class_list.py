"""Which classes a set of masks has: their names and colours, and what the files store for each of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from depthany.system.packages import reason

IGNORED, UNKNOWN = 255, -1  # of the lookup: a pixel to ignore, a value that must not occur
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class ClassList:
    """The classes of a set.

    Attributes:
        names: in the order of the class numbers, from 0.
        colours: RGB in 0..255 of each class.
        ids: stored values of each class.
        ignored: further stored values, of pixels to ignore. 255 is one in any case, unless it is a class.
        where: file or set that says so, for messages.
    """

    names: tuple[str, ...]
    colours: tuple[Colour, ...]
    ids: tuple[tuple[int, ...], ...]
    ignored: tuple[int, ...] = ()
    where: str = "the class list"

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) < len(self.names) or len(self.names) > IGNORED:
            raise ValueError(
                f"{self.where}: {len(self.names)} classes; expected 1 to {IGNORED} with different names"
            )
        stored = [value for values in self.ids for value in values]
        if twice := sorted({value for value in stored if stored.count(value) > 1 or value in self.ignored}):
            raise ValueError(f"{self.where}: the stored value {twice[0]} has two meanings; expected one")
        if any(not 0 <= value <= 65535 for value in (*stored, *self.ignored)):
            raise ValueError(f"{self.where}: ids={stored}; expected whole numbers from 0 to 65535")

    @classmethod
    def numbered(cls, names: Sequence[str], colours: Sequence[Colour] = (), where: str = "") -> "ClassList":
        """Returns classes whose stored values are their numbers; without colours they get those of VOC."""
        shades = tuple(colours) or tuple(voc_colours(len(names)))
        return cls(tuple(names), shades, tuple((i,) for i in range(len(names))), where=where or "the names")

    def lookup(self) -> NDArray[np.int16]:
        """Returns [65536] the class number of each stored value, `IGNORED`, or `UNKNOWN`."""
        table = np.full(65536, UNKNOWN, np.int16)
        table[IGNORED] = IGNORED
        table[list(self.ignored)] = IGNORED
        for number, values in enumerate(self.ids):
            table[list(values)] = number
        return table

    def stored_as(self) -> dict[str, list[Any]]:
        """Returns what decides the number of a pixel, as plain values: classes in order, ignored values."""
        named = [
            f"{name} (stored as {', '.join(map(str, sorted(ids)))})"
            for name, ids in zip(self.names, self.ids, strict=True)
        ]
        return {"classes": named, "ignored": sorted(set(self.ignored))}

    def find(self, name: str) -> int | None:
        """Returns the number of the class with this name, ignoring case; None if there is none."""
        return find_class(self.names, name)


def find_class(names: Iterable[str], name: str) -> int | None:
    """Returns the index of a name among the names of classes, ignoring case; None if it is not there.

    A class with alternatives, such as "sky, clouds", matches any of them.
    """
    for place, each in enumerate(names):
        if name.lower() in (word.strip() for word in each.lower().replace(";", ",").split(",")):
            return place
    return None


def read_class_list(path: Path) -> ClassList:
    """Reads a YAML file of classes.

        classes:
          - {name: road, rgb: [128, 64, 128], ids: [7, 9]}    # stored values; without ids, its place from 0
          - {name: sky}                                       # without rgb, the colour that VOC has there
        ignore: [0, 1]                                        # further stored values; 255 always is ignored

    Raises:
        ValueError: the file cannot be read, or is no such list.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot read the list of classes: {reason(error)}") from None
    rows = content.get("classes") if isinstance(content, Mapping) else None
    if not isinstance(rows, list) or not rows or not content.keys() <= {"classes", "ignore"}:
        raise ValueError(
            f"{path}: expected `classes:` with a list such as [{{name: sky, rgb: [70, 130, 180]}}], "
            "and optionally `ignore:` with stored values"
        )
    try:
        entries = [_entry(row, number) for number, row in enumerate(rows)]
        ignored = _stored(content.get("ignore"), "ignore", ())
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path}: {error}: expected entries such as {{name: sky, rgb: [70, 130, 180], ids: [23]}}"
        ) from None
    names, colours, ids = zip(*entries)
    return ClassList(names, colours, ids, ignored, str(path))


def _entry(row: Any, number: int) -> tuple[str, Colour, tuple[int, ...]]:
    given: dict[str, Any] = {"name": row} if isinstance(row, str) else dict(row)
    if unknown := given.keys() - {"name", "rgb", "ids"}:
        raise ValueError(f"unknown key {sorted(unknown)[0]!r} of class {number}")
    r, g, b = voc_colours(number + 1)[number] if given.get("rgb") is None else given["rgb"]
    if not all(isinstance(part, int) and 0 <= part <= 255 for part in (r, g, b)):
        raise ValueError(f"rgb={[r, g, b]} of class {number} is not in 0..255")
    name = given["name"]
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise ValueError(f"name={name} of class {number} is no text: write it in quotes")
    return str(name), (int(r), int(g), int(b)), _stored(given.get("ids"), "ids", (number,))


def _stored(value: Any, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """Returns stored values, given as a whole number or a list of them; None gives the default."""
    if value is None:
        return default
    values = value if isinstance(value, list) else [value]
    if any(not isinstance(each, int) or isinstance(each, bool) for each in values):
        raise ValueError(f"{key}={value!r} is no whole number or list of them")
    return tuple(values)


def voc_colours(count: int) -> list[Colour]:
    """Returns the first colours of PASCAL VOC's palette: bits of the number, spread over the channels."""
    return [
        (
            sum(((i >> (3 * j)) & 1) << (7 - j) for j in range(3)),
            sum(((i >> (3 * j + 1)) & 1) << (7 - j) for j in range(3)),
            sum(((i >> (3 * j + 2)) & 1) << (7 - j) for j in range(2)),
        )
        for i in range(count)
    ]


def same_classes(sets: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[Colour, ...]]:
    """Returns names and colours of the classes that all sets share.

    Args:
        sets: by name, with labels of unit "class" and the attribute `classes`, a `ClassList`.

    Raises:
        ValueError: the sets differ in their classes, or in the order of these.
    """
    (first, found), *others = ((name, each.classes) for name, each in sets.items())
    for name, other in others:
        if other.names != found.names:
            differs = next(
                (pair for pair in zip(found.names, other.names) if pair[0] != pair[1]),
                (f"{len(found.names)} classes", f"{len(other.names)} classes"),
            )
            raise ValueError(
                f"{name} has other classes than {first} ({differs[1]!r} for {differs[0]!r}): sets that "
                "are used together need the same classes in the same order; ids of a classes file map them"
            )
    return found.names, found.colours
