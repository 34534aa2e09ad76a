"""Which images make which batch: a pure function of (seed, position), so that nothing need be saved to
resume.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

_ROUNDS = 6


@dataclass(frozen=True)
class Draw:
    """One image to read: its index in the labeled or unlabeled sets, and the seed of its crop and flip."""

    labeled: bool
    index: int
    seed: int


class MixedBatches(Sampler[list[Draw]]):
    """Micro-batches with a fixed number of labeled and unlabeled images in each.

    Each set is reshuffled for every pass over it. The last micro-batch holds what is left, in the same
    ratio, so that exactly `total` images are drawn from the set that counts (the unlabeled one where there
    is one).

    Args:
        labeled_count, unlabeled_count: images in the sets.
        labeled_per_batch, unlabeled_per_batch: images of each kind in a micro-batch.
        total: images to draw from the set that counts.
        seed: decides order, crops and flips.
        start: first micro-batch.
    """

    def __init__(
        self,
        labeled_count: int,
        unlabeled_count: int,
        labeled_per_batch: int,
        unlabeled_per_batch: int,
        total: int,
        seed: int,
        start: int = 0,
    ) -> None:
        assert labeled_per_batch > 0 or unlabeled_per_batch > 0
        self.counts = (labeled_count, unlabeled_count)
        self.per_batch = (labeled_per_batch, unlabeled_per_batch)
        self.total, self.seed, self.start = total, seed, start

    def __len__(self) -> int:
        return max(0, -(-self.total // self._counting) - self.start)

    def __iter__(self) -> Iterator[list[Draw]]:
        return (self.batch(k) for k in range(self.start, self.start + len(self)))

    @property
    def _counting(self) -> int:
        labeled, unlabeled = self.per_batch
        return unlabeled or labeled

    def batch(self, k: int) -> list[Draw]:
        """The draws of micro-batch `k`, labeled ones first."""
        left = min(self._counting, self.total - k * self._counting)
        draws = list[Draw]()
        for labeled, count, per_batch in zip((True, False), self.counts, self.per_batch):
            here = -(-per_batch * left // self._counting)  # the whole share, but for the last batch
            positions = k * per_batch + np.arange(here)
            indices = shuffled(positions, count, self.seed, stream=int(labeled))
            draws += [Draw(labeled, int(i), self._view_seed(labeled, p)) for i, p in zip(indices, positions)]
        return draws

    def _view_seed(self, labeled: bool, position: np.int64) -> int:
        return int(
            np.random.SeedSequence([self.seed, int(labeled), int(position)]).generate_state(1, np.uint64)[0]
        )


def shuffled(positions: NDArray[np.int64], count: int, seed: int, stream: int = 0) -> NDArray[np.int64]:
    """Index drawn at each position: a new permutation of `count` for every pass, computed without a list
    of it.

    A Feistel network permutes the next even power of two, and values beyond `count` are sent through it
    again until they fall inside (cycle walking), which keeps it a permutation (Black and Rogaway 2002).

    Args:
        positions: [n] places in the endless stream of passes, >= 0.
        count: size of the set.
        seed, stream: choose the permutations.

    Returns:
        [n] indices in [0, count).
    """
    sweep, place = np.divmod(positions.astype(np.int64), max(count, 1))
    half_bits = np.uint64(max(3, (max(count - 1, 1).bit_length() + 1) // 2))
    keys = _mix(_mix(sweep.astype(np.uint64) + np.uint64(stream << 48)) ^ np.uint64(seed))
    values = _feistel(place.astype(np.uint64), half_bits, keys)
    while (outside := values >= count).any():
        values[outside] = _feistel(values[outside], half_bits, keys[outside])
    return values.astype(np.int64)


def _feistel(
    values: NDArray[np.uint64], half_bits: np.uint64, keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    low_mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = values >> half_bits, values & low_mask
    for i in range(_ROUNDS):
        left, right = right, left ^ (_mix(right ^ _mix(keys + np.uint64(i))) & low_mask)
    return (left << half_bits) | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele et al. 2014): 64 bits in, 64 well-mixed bits out; wraps on purpose."""
    with np.errstate(over="ignore"):
        mixed = values + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))
