"""Which images make which batch: a pure function of (seed, position), so that nothing need be saved to
resume.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

_ROUNDS = 6
ORDERS = ("shuffle", "shards")  # of the unlabeled set: `shuffled`, `ShardOrder`


@dataclass(frozen=True)
class Draw:
    """One image to read: its index in the labeled or unlabeled sets, and the seed of its crop and flip.

    It is number `place` of the `places` images of its kind in the micro-batch.
    """

    labeled: bool
    index: int
    seed: int
    place: int = 0
    places: int = 1


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
        unlabeled_order: how a pass goes through the unlabeled set; None = shuffled as a whole, as the labeled
            one always is.
        rank, size: of the processes that share each micro-batch, see `share_of`; the micro-batches do not
            depend on them.
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
        unlabeled_order: "ShardOrder | None" = None,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        assert labeled_per_batch > 0 or unlabeled_per_batch > 0
        self.counts = (labeled_count, unlabeled_count)
        self.per_batch = (labeled_per_batch, unlabeled_per_batch)
        self.total, self.seed, self.start, self.unlabeled_order = total, seed, start, unlabeled_order
        self.rank, self.size = rank, size

    def __len__(self) -> int:
        return max(0, -(-self.total // self._counting) - self.start)

    def __iter__(self) -> Iterator[list[Draw]]:
        micro_batches = range(self.start, self.start + len(self))
        return (share_of(self.batch(k), self.rank, self.size) for k in micro_batches)

    @property
    def _counting(self) -> int:
        labeled, unlabeled = self.per_batch
        return unlabeled or labeled

    def drawn_before(self, k: int) -> tuple[int, int]:
        """Labeled and unlabeled images drawn before micro-batch `k`."""
        whole, left = divmod(min(k * self._counting, self.total), self._counting)
        labeled, unlabeled = (each * whole + self._share(each, left) for each in self.per_batch)
        return labeled, unlabeled

    def _share(self, per_batch: int, left: int) -> int:
        """Images of a kind in a micro-batch with `left` of the kind that counts; the last may have less."""
        return -(-per_batch * left // self._counting)

    def batch(self, k: int) -> list[Draw]:
        """The draws of micro-batch `k`, of all processes together, labeled ones first."""
        left = min(self._counting, self.total - k * self._counting)
        draws = list[Draw]()
        for labeled, count, per_batch in zip((True, False), self.counts, self.per_batch):
            positions = k * per_batch + np.arange(self._share(per_batch, left))
            if labeled or self.unlabeled_order is None:
                indices = shuffled(positions, count, self.seed, stream=int(labeled))
            else:
                indices = self.unlabeled_order(positions)
            draws += [
                Draw(labeled, int(i), self._view_seed(labeled, p), place, len(positions))
                for place, (i, p) in enumerate(zip(indices, positions))
            ]
        return draws

    def _view_seed(self, labeled: bool, position: np.int64) -> int:
        return int(
            np.random.SeedSequence([self.seed, int(labeled), int(position)]).generate_state(1, np.uint64)[0]
        )


def share_of(draws: list[Draw], rank: int, size: int) -> list[Draw]:
    """The draws of a micro-batch that process `rank` of `size` reads.

    Unlabeled images go in pairs, first and last, second and last but one, which CutMix needs together. They
    are dealt from the other end, so that a process with one labeled image less has a pair more.
    """
    mine = list[Draw]()
    for draw in draws:
        if draw.labeled:
            owner = draw.place % size
        else:
            owner = size - 1 - min(draw.place, draw.places - 1 - draw.place) % size
        if owner == rank:
            mine.append(draw)
    return mine


class ShardOrder:
    """An order that stays local: a pass reads a window of shards at a time, and shuffles within it.

    Shards are permuted anew for each pass and cut into windows of `window`; the images of a window are
    permuted among themselves and all drawn before the next window begins. A position gives its index without
    a list of the images: from the cumulative sizes of the permuted shards and the Feistel network of
    `shuffled`. Shards of more than RUN images count as several, each a run of neighbours on the disk.

    Args:
        shard_sizes: [s] images of each shard, in the order of the indices; 0 is fine.
        window: shards that are read from at a time.
        seed: chooses the permutations.
    """

    RUN = 10_000  # images: about one tar of SA-1B, and small beside an LMDB of three million

    def __init__(self, shard_sizes: NDArray[np.int64], window: int, seed: int) -> None:
        self.window, self.seed = window, seed
        self._begins, self._sizes = _cut(np.asarray(shard_sizes, np.int64), self.RUN)
        self.count = int(self._sizes.sum())
        self._pass: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Index drawn at each position [n] of the endless stream of passes, in [0, count)."""
        sweeps, places = np.divmod(positions.astype(np.int64), self.count)
        indices = np.empty_like(places)
        for sweep in np.unique(sweeps):
            here = sweeps == sweep
            indices[here] = self._within(int(sweep), places[here])
        return indices

    def _within(self, sweep: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        shards, ends = self._shards_of(sweep)
        window_ends = np.append(ends[self.window - 1 : -1 : self.window], ends[-1])
        windows = np.searchsorted(window_ends, places, side="right")
        drawn = np.empty_like(places)
        for window in np.unique(windows):
            here, begin = windows == window, int(window_ends[window - 1]) if window else 0
            size = int(window_ends[window]) - begin
            keyed = places[here] - begin + np.int64(size) * sweep  # the pass of `shuffled` is ours
            drawn[here] = begin + shuffled(keyed, size, self._window_seed(int(window)))
        at = np.searchsorted(ends, drawn, side="right")
        return self._begins[shards[at]] + drawn - (ends[at] - self._sizes[shards[at]])

    def _window_seed(self, window: int) -> int:
        return int(np.random.SeedSequence([self.seed, window]).generate_state(1, np.uint64)[0])

    def _shards_of(self, sweep: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Shards [s] in the order of this pass, and the positions [s] where each ends."""
        if self._pass is None or self._pass[0] != sweep:
            s = len(self._sizes)
            shards = shuffled(np.arange(s) + s * sweep, s, self.seed, stream=2)
            self._pass = sweep, shards, np.cumsum(self._sizes[shards])
        return self._pass[1:]


def _cut(sizes: NDArray[np.int64], run: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First index and size of every run of at most `run` images that lies within one shard."""
    runs = -(-sizes // run)
    shard = np.repeat(np.arange(len(sizes)), runs)
    nth = np.arange(len(shard)) - (np.cumsum(runs) - runs)[shard]
    begins = (np.cumsum(sizes) - sizes)[shard] + nth * run
    return begins, np.minimum(sizes[shard] - nth * run, run)


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
