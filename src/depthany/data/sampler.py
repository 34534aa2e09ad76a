"""Which images make a batch: a function of (seed, position), so a run resumes without any saved state."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

Order = Callable[[NDArray[np.int64]], NDArray[np.int64]]  # index drawn at each position of an endless stream
_ROUNDS = 6
ORDERS = ("shuffle", "shards")  # of the unlabeled images: `shuffled`, `ShardOrder`


@dataclass(frozen=True)
class Draw:
    """One image to read.

    labeled: whether it is labeled.
    index: among all labeled, or all unlabeled images.
    seed: seed of its crop and flip.
    place, places: its number among the images of its kind in the micro-batch, and how many these are.
    """

    labeled: bool
    index: int
    seed: int
    place: int = 0
    places: int = 1


class MixedBatches(Sampler[list[Draw]]):
    """Micro-batches with a fixed number of labeled and of unlabeled images.

    Labeled and unlabeled images are shuffled anew for every pass over them, unless an order says otherwise.
    The last micro-batch holds the rest, in the same ratio, so that exactly `total` images of the counting
    kind are drawn: unlabeled images if there are any, else labeled ones.

    Args:
        labeled_count, unlabeled_count: how many images there are.
        labeled_per_batch, unlabeled_per_batch: images of a kind in a micro-batch.
        total: images of the counting kind to draw.
        seed: decides order, crops and flips.
        start: first micro-batch.
        unlabeled_order, labeled_order: index of the image drawn at each position, see `ShardOrder` and
            `data.weighted.WeightedOrder`; None = shuffled as a whole.
        rank, size: this process and the number of those that share each micro-batch (see `share_of`).
            Micro-batches do not depend on them.
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
        unlabeled_order: Order | None = None,
        rank: int = 0,
        size: int = 1,
        labeled_order: Order | None = None,
    ) -> None:
        assert labeled_per_batch > 0 or unlabeled_per_batch > 0
        self.counts = (labeled_count, unlabeled_count)
        self.per_batch = (labeled_per_batch, unlabeled_per_batch)
        self.total, self.seed, self.start = total, seed, start
        self.orders = (labeled_order, unlabeled_order)
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
        """Returns the numbers of labeled and unlabeled images drawn before micro-batch `k`."""
        whole, left = divmod(min(k * self._counting, self.total), self._counting)
        labeled, unlabeled = (n * whole + self._share(n, left) for n in self.per_batch)
        return labeled, unlabeled

    def _share(self, per_batch: int, left: int) -> int:
        """Returns the images of a kind in a micro-batch that has `left` images of the counting kind."""
        return -(-per_batch * left // self._counting)

    def batch(self, k: int) -> list[Draw]:
        """Returns the draws of micro-batch `k` for all processes together, labeled images first."""
        left = min(self._counting, self.total - k * self._counting)
        draws = list[Draw]()
        for labeled, count, per_batch, order in zip((True, False), self.counts, self.per_batch, self.orders):
            positions = k * per_batch + np.arange(self._share(per_batch, left))
            if order is not None and len(positions):
                indices = order(positions)
            else:
                indices = shuffled(positions, count, self.seed, stream=int(labeled))
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
    """Returns the draws of a micro-batch that process `rank` of `size` reads.

    Unlabeled images stay in pairs (first and last, second and last but one ...), which CutMix needs together.
    They are dealt to the processes in reverse, so a process with one labeled image less has one pair more.
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
    """A local order: a pass goes through windows of a few shards, and shuffles within each window.

    Shards are permuted anew for each pass and divided into windows. All images of a window are drawn, in
    random order, before the next window begins. The index at a position is computed without a list of the
    images, from the cumulative sizes of the permuted shards and the Feistel network of `shuffled`. A shard of
    more than RUN images counts as several, each a run of neighbours on the disk.

    Args:
        shard_sizes: [s] images of each shard, in the order of the indices; may be 0.
        window: shards in a window.
        seed: chooses the permutations.
    """

    RUN = 10_000  # images: about one tar of SA-1B, and small beside an LMDB of three million

    def __init__(self, shard_sizes: NDArray[np.int64], window: int, seed: int) -> None:
        self.window, self.seed = window, seed
        self._begins, self._sizes = _cut(np.asarray(shard_sizes, np.int64), self.RUN)
        self.count = int(self._sizes.sum())
        self._pass: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the index, in [0, count), drawn at each position [n] of the endless stream of passes."""
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
            keyed = places[here] - begin + np.int64(size) * sweep  # so that `shuffled` is in the same pass
            drawn[here] = begin + shuffled(keyed, size, self._window_seed(int(window)))
        at = np.searchsorted(ends, drawn, side="right")
        return self._begins[shards[at]] + drawn - (ends[at] - self._sizes[shards[at]])

    def _window_seed(self, window: int) -> int:
        return int(np.random.SeedSequence([self.seed, window]).generate_state(1, np.uint64)[0])

    def _shards_of(self, sweep: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the shards [s] in the order of a pass, and the position [s] where each ends."""
        if self._pass is None or self._pass[0] != sweep:
            s = len(self._sizes)
            shards = shuffled(np.arange(s) + s * sweep, s, self.seed, stream=2)
            self._pass = sweep, shards, np.cumsum(self._sizes[shards])
        return self._pass[1:]


def _cut(sizes: NDArray[np.int64], run: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns first index and size of the runs of at most `run` images into which the shards are divided."""
    runs = -(-sizes // run)
    shard = np.repeat(np.arange(len(sizes)), runs)
    nth = np.arange(len(shard)) - (np.cumsum(runs) - runs)[shard]
    begins = (np.cumsum(sizes) - sizes)[shard] + nth * run
    return begins, np.minimum(sizes[shard] - nth * run, run)


def shuffled(positions: NDArray[np.int64], count: int, seed: int, stream: int = 0) -> NDArray[np.int64]:
    """Returns the index drawn at each position: for every pass a new permutation of `count`, without a list.

    A Feistel network permutes the next even power of two. A value beyond `count` goes through it again until
    it is below (cycle walking), which keeps it a permutation (Black and Rogaway 2002).

    Args:
        positions: [n] positions in the endless stream of passes, 0 or more.
        count: number of images.
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
    """The finaliser of SplitMix64 (Steele et al. 2014): 64 bits to 64 well-mixed bits; overflows on
    purpose.
    """
    with np.errstate(over="ignore"):
        mixed = values + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))
