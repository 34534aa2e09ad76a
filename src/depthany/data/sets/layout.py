"""What the readers of this folder have in common: a layout on disk that pairs images with depth maps."""

from collections.abc import Iterable, Sequence

from depthany.data.labeled import PairedDepth
from depthany.data.pairs import Layout, Pair, Pairs

ANYWHERE = r"(?:(.*)/)?"  # before the name of a folder: it may lie at any depth, the root included


class LayoutDepth(PairedDepth):
    """A set whose pairs follow from names of folders and files; a subclass gives `layout` and `decode`."""

    layout: Layout

    def find(self) -> tuple[Sequence[Pair], list[str]]:
        rows, lonely = self.layout.find(self.root)
        return self.pairs_of(self.keep(rows)), lonely

    def keep(self, rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Those of the found (image, depth) that are used; a subclass counts the others in `left_out`."""
        return rows

    def pairs_of(self, rows: Iterable[tuple[str, str]]) -> Pairs:
        """Pairs named by their image's path below the root."""
        return Pairs(self.root, ((image, image, depth) for image, depth in rows))

    def count_left_out(self, why: str, count: int) -> None:
        """Remember how many pairs are there and not used."""
        if count:
            self.left_out[why] = self.left_out.get(why, 0) + count


def require_choice(key: str, value: str, choices: Sequence[str]) -> None:
    """Raise a `ValueError` that lists the choices where `value` is none of them."""
    if value not in choices:
        raise ValueError(f"unknown {key} {value!r}; choose from {', '.join(choices)}")
