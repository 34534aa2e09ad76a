"""A plug-in of depthany: a loss on depth edges, and a data set that is a CSV file."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from depthany.data.depth_files import read_depth
from depthany.data.labeled import Decoded, PairedDepth
from depthany.data.pairs import Pair, first_ten, missing
from depthany.losses.normalise import NORMALISATIONS, pixel_rows
from depthany.losses.reduce import MeanOverRanks, on_one_rank, one_if_zero
from depthany.losses.table import LOSSES

EPS = 1e-6  # spread up to which a map counts as constant


def edge_loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    normalisation: str = "median_mad",
    alpha: float = 0.5,
    mean_over_ranks: MeanOverRanks = on_one_rank,
) -> Tensor:
    """Mean of ln(1 + |step of the error| / alpha) over pairs of neighbouring pixels.

    Step of the error: the difference of prediction - target between a pixel and the one to its right or below
    it. It is large where an edge of the prediction is blurred or lies beside the edge of the target.
    Source: the loss l_grad of Hu et al. 2019 (arXiv 1803.08673), ln(x + alpha), here without its constant
    ln(alpha). Departures: differences of neighbours instead of Sobel filters, so that few pairs are lost at
    the border of the mask; maps are normalised first, since disparity has no scale of its own.

    Args:
        prediction, target: [b h w] disparity, any scale and shift per image; may be NaN off the mask.
        mask: [b h w] bool, True where the target is known. A pair counts if both pixels are known.
        normalisation: name in `depthany.losses.normalise.NORMALISATIONS`; the setting `loss.normalisation`.
        alpha: step, in the unit of the normalised maps, up to which the loss is nearly linear.
        mean_over_ranks: see `depthany.losses.reduce.MeanOverRanks`.

    Returns:
        [] the loss; 0 with zero gradient if there is no pair.
    """
    rows = pixel_rows(prediction, mask), pixel_rows(target, mask), mask.flatten(1)  # [b h*w]
    maps = NORMALISATIONS[normalisation](*rows, EPS)
    error = (maps.prediction - maps.target).view(mask.shape)  # [b h w]
    used = mask & ~(maps.spread <= EPS)[:, None, None]  # a constant target has no edge, and no scale
    right, below = used[:, :, 1:] & used[:, :, :-1], used[:, 1:] & used[:, :-1]
    pairs = torch.cat([right.flatten(1), below.flatten(1)], 1)  # [b n] bool
    steps = torch.cat([error.diff(dim=2).flatten(1), error.diff(dim=1).flatten(1)], 1)  # [b n]
    total = torch.where(pairs, torch.log1p(steps.abs() / alpha), 0).sum()
    return total / one_if_zero(mean_over_ranks(pairs.sum()))


class CsvDepth(PairedDepth):
    """A CSV file with the columns image, depth, metres_per_unit and farthest_m, and a pair in each row.

    So each pair has its own unit and range, as when several recordings are put together.

    Args:
        root: folder to which the paths of images and depth files are relative.
        csv_file: the list. Depth in metres is the stored value times `metres_per_unit`; depth beyond
            `farthest_m` is unknown.
        min_depth, max_depth: metres; see `PairedDepth`.

    Raises:
        ValueError: the list or a file in it does not exist, a column is missing, or a value is no number.
    """

    def __init__(self, root: str, csv_file: str, min_depth: float = 1e-3, max_depth: float = 80.0) -> None:
        self.csv_file = Path(csv_file)
        self.scales = dict[str, tuple[float, float]]()  # name of a pair -> metres_per_unit, farthest_m
        super().__init__(root, min_depth, max_depth)

    def find(self) -> tuple[Sequence[Pair], list[str]]:
        """Returns the pairs of the list; none is without partner."""
        if not self.csv_file.is_file():
            raise ValueError(f"{self.csv_file}: no such file (looked from {Path.cwd()})")
        with self.csv_file.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        try:
            for row in rows:
                self.scales[row["image"]] = float(row["metres_per_unit"]), float(row["farthest_m"])
            files = [(row["image"], row["depth"]) for row in rows]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.csv_file}: {error!r}; {self.expectation()}") from None
        if absent := missing(self.root, (path for pair in files for path in pair)):
            raise ValueError(
                f"{self.csv_file}: {len(absent)} file(s) do not exist below {self.root}, the first: "
                f"{first_ten(absent)}"
            )
        return self.pairs_of(files), []

    def decode(self, pair: Pair) -> Decoded:
        """Returns depth in metres, valid up to the range of the pair."""
        metres_per_unit, farthest_m = self.scales[pair.name]
        depth_m = read_depth(pair.depth) * np.float32(metres_per_unit)  # [h w]
        return Decoded(depth_m, depth_m <= farthest_m)


LOSSES["edges"] = edge_loss
