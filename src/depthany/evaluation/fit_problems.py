"""Images whose alignment says that the prediction itself is wrong: near and far swapped, or constant."""

from collections.abc import Sequence
from dataclasses import dataclass

from depthany.evaluation.score import Row
from depthany.inference.constant_maps import WHY
from depthany.system.plurals import counted

NAMES_SHOWN = 10  # of images, in messages; results.json has all
# Warn above this share of the images. A least-squares fit to an image of almost one distance can get a
# negative scale by noise: after 50 steps of training on the bundled sample up to 2 of 50 images have one.
# Where metres were predicted in place of disparity, nearly all images have one.
MANY = 0.05


@dataclass(frozen=True)
class FitProblems:
    """Images of a set whose fit is suspicious.

    Attributes:
        images: how many were scored.
        negative: names of those with a negative scale.
        constant: names of those that were scored as a constant.
    """

    images: int
    negative: tuple[str, ...]
    constant: tuple[str, ...]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "FitProblems":
        """Returns the problems of scored images."""
        negative = tuple(row.name for row in rows if row.is_negative)
        return cls(len(rows), negative, tuple(row.name for row in rows if row.is_constant))

    def warnings(self) -> list[str]:
        """Returns one line for each kind with a share of images above MANY."""
        negative, constant = len(self.negative), len(self.constant)
        of_all = f"of {counted(self.images, 'image')}"
        lines = []
        if negative > MANY * self.images:
            lines.append(
                f"{negative} {of_all} fitted with a negative scale: near and far may be swapped, as when "
                "metres are taken as disparity"
            )
        if constant > MANY * self.images:
            lines.append(
                f"{constant} {of_all} with a constant prediction: such a score says nothing about the model, "
                f"which may be {WHY}"
            )
        return lines

    def notes(self) -> list[str]:
        """Returns one line for each kind that occurs, with names."""
        lines = []
        if self.negative:
            lines.append(
                f"{len(self.negative)} fitted with a negative scale (near and far swapped), scored as "
                f"fitted: {shown(self.negative)}"
            )
        if self.constant:
            lines.append(
                f"{len(self.constant)} with a constant prediction, which cannot be aligned, scored as a "
                f"constant: {shown(self.constant)}"
            )
        return lines


def shown(names: Sequence[str]) -> str:
    """Returns the first names, and dots for the others."""
    return ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
