"""Images of several data sets, drawn by a weight per set: a function of (seed, position) too."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from depthany.data.sampler import shuffled

BLOCK = 10_000  # positions: shares are exact in every block, and hold to 1 in 10,000


@dataclass
class SetWeights:
    """The group `data.weights`: weights of sets by name, or None for the plain concatenation."""

    labeled: dict[str, float] | None = None
    unlabeled: dict[str, float] | None = None

    def __post_init__(self) -> None:
        for kind, weights in (("labeled", self.labeled), ("unlabeled", self.unlabeled)):
            for name, weight in (weights or {}).items():
                if not 0 < weight < float("inf"):
                    raise ValueError(
                        f"{kind}.{name}={weight}: expected more than 0; the set's root=null leaves it out"
                    )


class WeightedOrder:
    """An order in which each set has a share of the positions that is proportional to its weight.

    Positions are divided into blocks. Each block has the same number of images of a set, in random places.
    Each set has its own passes: a set with a large weight is passed over more often than one with a small
    weight, and no image is drawn again before all others of its set.

    Args:
        counts: images of each set, in the order of the concatenation.
        weights: weights of each set, above 0.
        seed, stream: choose the permutations.
        orders: the order within each set, in place of a shuffle of the whole set; see `ShardOrder`.
    """

    def __init__(
        self,
        counts: Sequence[int],
        weights: Sequence[float],
        seed: int,
        stream: int,
        orders: Sequence[Callable[[NDArray[np.int64]], NDArray[np.int64]]] | None = None,
    ) -> None:
        assert len(counts) == len(weights) and min(counts) > 0
        self.counts, self.seed, self.stream, self.orders = list(counts), seed, stream, orders
        self.per_block = shares(weights)
        self._ends = np.cumsum(self.per_block)
        self._begins = np.cumsum(self.counts) - self.counts  # [s] index of the first image of each set
        self._block: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the index in the concatenation drawn at each position [n] of the endless stream."""
        blocks, places = np.divmod(positions.astype(np.int64), BLOCK)
        indices = np.empty_like(places)
        for block in np.unique(blocks):
            of_set, nth = self._of_block(int(block))
            for k in range(len(self.counts)):
                here = (blocks == block) & (of_set[places] == k)
                indices[here] = self._begins[k] + self._within(k, nth[places[here]])
        return indices

    def _of_block(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns for each place in a block [BLOCK] its set, and its position among all draws of that set."""
        if self._block is None or self._block[0] != block:
            positions = np.arange(BLOCK) + block * BLOCK
            drawn = shuffled(positions, BLOCK, self.seed, self.stream + 3)  # 0 to 2 are streams of images
            of_set, nth = np.searchsorted(self._ends, drawn, side="right"), np.empty(BLOCK, np.int64)
            for k, size in enumerate(self.per_block):
                nth[of_set == k] = block * size + np.arange(size)
            self._block = block, of_set, nth
        return self._block[1:]

    def _within(self, k: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        if self.orders is not None:
            return self.orders[k](positions)
        return shuffled(positions, self.counts[k], seed_of_set(self.seed, self.stream, k), self.stream)

    def describe(self, names: Sequence[str], round_name: str) -> str:
        """Returns a line on the share of draws of each set, and on how often the draws pass over it.

        Args:
            names: names of the sets.
            round_name: name for as many draws as all sets have images, such as "an epoch".
        """
        total = sum(self.counts)
        lines = [
            f"{name} {size / BLOCK:.1%} ({total * size / BLOCK / count:.2f} times its {count} images)"
            for name, size, count in zip(names, self.per_block, self.counts)
        ]
        return f"drawn by weight, {total} images {round_name}: {', '.join(lines)}"


def shares(weights: Sequence[float]) -> NDArray[np.int64]:
    """Returns how many of BLOCK positions each set has: the largest remainders are rounded up, none is 0."""
    exact = np.asarray(weights, np.float64) / np.sum(weights) * BLOCK
    found = np.maximum(exact.astype(np.int64), 1)
    for k in np.argsort(found - exact, kind="stable")[: max(0, BLOCK - int(found.sum()))]:
        found[k] += 1
    while (above := int(found.sum()) - BLOCK) > 0:  # tiny weights were raised to 1
        found[np.argmax(found)] -= above
    return found


def seed_of_set(seed: int, stream: int, k: int) -> int:
    """Returns the seed of the order within set `k`."""
    return int(np.random.SeedSequence([seed, stream, k]).generate_state(1, np.uint64)[0])


def named_weights(
    kind: str, weights: Mapping[str, float], known: Sequence[str], drawn: Sequence[str]
) -> list[float]:
    """Returns the weight of each set that is drawn.

    Args:
        kind: labeled | unlabeled, for messages.
        known: names of all sets of the mixture. drawn: those that have a root.

    Raises:
        ValueError: a weight names no known set, or a set that is drawn has none.
    """
    listed = ", ".join(known) or "none"
    for name in weights:
        if name not in known:
            raise ValueError(f"data.weights.{kind}.{name}: no such {kind} set; the sets are: {listed}")
    if missing := [name for name in drawn if name not in weights]:
        keys = " ".join(f"data.weights.{kind}.{name}=..." for name in missing)
        raise ValueError(
            f"data.weights.{kind} lacks some of the sets: add {keys}, or leave a set out by root=null"
        )
    return [float(weights[name]) for name in drawn]
