"""The order of the images: each exactly once a pass, from (seed, position) alone."""

import tracemalloc
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from depthany.data.sampler import Draw, MixedBatches, ShardOrder, shuffled


def passes(count: int, seed: int = 0, stream: int = 0, n: int = 3) -> list[list[int]]:
    drawn = shuffled(np.arange(n * count), count, seed, stream).tolist()
    return [drawn[i * count : (i + 1) * count] for i in range(n)]


def indices(batches: list[list[Draw]], labeled: bool) -> list[int]:
    return [draw.index for batch in batches for draw in batch if draw.labeled is labeled]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 1000, 4097])
def test_every_pass_draws_every_image_exactly_once(count: int) -> None:
    for drawn in passes(count):
        assert sorted(drawn) == list(range(count))


def test_order_differs_between_passes_seeds_and_streams() -> None:
    orders = [*passes(50), *passes(50, seed=1), *passes(50, stream=1)]
    assert len({tuple(order) for order in orders}) == 9


def test_index_depends_on_its_position_alone() -> None:
    whole = shuffled(np.arange(300), 77, seed=5)
    for position in (299, 0, 76, 77, 150):
        assert shuffled(np.array([position]), 77, seed=5).tolist() == [whole[position]]


@pytest.mark.parametrize("count", [5, 40, 300])
def test_shuffle_places_images_evenly(count: int) -> None:
    n = 20_000
    expected, deviation = n / count, np.sqrt(n / count * (1 - 1 / count))
    for place in (0, 1, count - 1):
        times = np.bincount(shuffled(np.arange(n) * count + place, count, seed=0), minlength=count)
        assert np.abs(times - expected).max() < 5 * deviation


def test_every_image_follows_every_other_about_equally_often() -> None:
    n = 20_000
    orders = shuffled(np.arange(n * 5), 5, seed=0).reshape(n, 5)
    following = Counter((a, b) for order in orders.tolist() for a, b in pairwise(order))
    assert len(following) == 20
    assert all(abs(times - 4000) < 5 * 60 for times in following.values())


def test_last_batch_keeps_the_ratio() -> None:
    batches = list(MixedBatches(5, 7, 1, 2, total=7, seed=0))
    assert [[draw.labeled for draw in batch] for batch in batches] == [[True, False, False]] * 3 + [
        [True, False]
    ]
    assert sorted(indices(batches, labeled=False)) == list(range(7))


def test_labeled_images_are_used_equally_often() -> None:
    batches = list(MixedBatches(5, 10, 2, 4, total=60, seed=3))  # 6 passes, 30 labeled draws
    assert Counter(indices(batches, labeled=False)) == dict.fromkeys(range(10), 6)
    labeled = indices(batches, labeled=True)
    assert Counter(labeled) == dict.fromkeys(range(5), 6)
    orders = {tuple(labeled[i : i + 5]) for i in range(0, 30, 5)}
    assert len(orders) > 1, "the labeled set is reshuffled for each pass"


def test_labeled_and_unlabeled_orders_differ() -> None:
    batches = list(MixedBatches(50, 50, 1, 1, total=50, seed=0))
    assert sum(a.index == b.index for a, b in batches) < 10  # 1 to be expected


@pytest.mark.parametrize(
    "per_batch, total", [((1, 2), 7), ((3, 2), 7), ((4, 0), 10), ((0, 3), 8), ((2, 2), 8)]
)
def test_drawn_before_sums_the_earlier_batches(per_batch: tuple[int, int], total: int) -> None:
    sampler = MixedBatches(5, 9, *per_batch, total=total, seed=0)
    labeled = unlabeled = 0
    for k, draws in enumerate(sampler):
        assert sampler.drawn_before(k) == (labeled, unlabeled)
        labeled += sum(draw.labeled for draw in draws)
        unlabeled += sum(not draw.labeled for draw in draws)
    assert sampler.drawn_before(len(sampler)) == (labeled, unlabeled)


def test_teacher_epochs_count_labeled_images() -> None:
    batches = list(MixedBatches(10, 0, 4, 0, total=20, seed=0))
    assert [len(batch) for batch in batches] == [4] * 5
    assert Counter(indices(batches, labeled=True)) == dict.fromkeys(range(10), 2)


@pytest.mark.parametrize("start", [0, 1, 7, 15, 16])
def test_later_start_yields_the_same_tail(start: int) -> None:
    whole = list(MixedBatches(5, 31, 1, 2, total=31, seed=9))
    tail = MixedBatches(5, 31, 1, 2, total=31, seed=9, start=start)
    assert list(tail) == whole[start:]
    assert len(tail) == len(whole) - start


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("per_batch", [(4, 8), (3, 7), (1, 2), (5, 0)])
def test_processes_share_batches_with_partners_together(per_batch: tuple[int, int], size: int) -> None:
    whole = list(MixedBatches(9, 11, *per_batch, total=30, seed=0))
    shares = [list(MixedBatches(9, 11, *per_batch, 30, 0, rank=rank, size=size)) for rank in range(size)]
    for draws, *parts in zip(whole, *shares):
        together = [draw for part in parts for draw in part]
        assert sorted(together, key=lambda d: (not d.labeled, d.place)) == draws
        assert len(together) == len(draws)
        for part in parts:
            places = {draw.place for draw in part if not draw.labeled}
            assert places == {draw.places - 1 - draw.place for draw in part if not draw.labeled}
        for counts in ([sum(d.labeled for d in part) for part in parts], list(map(len, parts))):
            assert max(counts) - min(counts) <= 2  # a pair


def test_crop_seed_differs_between_draws() -> None:
    draws = [draw for batch in MixedBatches(3, 4, 1, 2, total=40, seed=0) for draw in batch]
    assert len({draw.seed for draw in draws}) == len(draws)


def shard_of(index: int, sizes: list[int]) -> int:
    return int(np.searchsorted(np.cumsum(sizes), index, side="right"))


def test_order_of_62_million_images_needs_no_list() -> None:
    count, positions = 62_300_000, np.random.default_rng(0).integers(0, 2 * 62_300_000, 20_000)
    for order in (
        lambda at: shuffled(at, count, seed=0),
        ShardOrder(np.full(623, 100_000), window=64, seed=0),
    ):
        tracemalloc.start()
        drawn = order(positions)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < 8_000_000, "a list of the images would have 500 MB"
        assert 0 <= drawn.min() < drawn.max() < count
        assert len(set(drawn[positions < count].tolist())) == len(set(positions[positions < count].tolist()))


UNEVEN = [[1], [5], [0, 3, 0], [7, 1, 1, 30, 0, 2], [100, 1] * 9, [13] * 31, [1] * 40, [57, 3, 90]]


@pytest.mark.parametrize("window", [1, 3, 1000])
@pytest.mark.parametrize("run", [4, 10_000])
@pytest.mark.parametrize("sizes", UNEVEN)
def test_shard_order_draws_every_image_once(
    sizes: list[int], run: int, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ShardOrder, "RUN", run)
    order, count = ShardOrder(np.array(sizes), window, seed=3), sum(sizes)
    drawn = order(np.arange(3 * count))
    for sweep in range(3):
        assert sorted(drawn[sweep * count : (sweep + 1) * count].tolist()) == list(range(count))


@pytest.mark.parametrize("window", [1, 2, 5])
def test_neighbours_come_from_a_window_of_shards(window: int) -> None:
    sizes = np.random.default_rng(1).integers(1, 40, 23).tolist()
    shards = [shard_of(i, sizes) for i in ShardOrder(np.array(sizes), window, seed=0)(np.arange(sum(sizes)))]
    seen, groups = set[int](), []
    while shards:  # a window ends where the last image of its `window` shards is drawn
        group = set(shards[:1])
        while len(group) < min(window, len(sizes) - len(seen)):
            group.add(next(s for s in shards if s not in group))
        size = sum(sizes[s] for s in group)
        assert set(shards[:size]) == group
        assert not group & seen
        seen |= group
        groups.append(frozenset(group))
        shards = shards[size:]
    assert len(groups) == -(-23 // window)


def test_large_shard_counts_as_several_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ShardOrder, "RUN", 10)
    drawn = ShardOrder(np.array([35]), window=1, seed=0)(np.arange(35)).tolist()
    runs = [{i // 10 for i in drawn[start : start + 5]} for start in range(0, 35, 5)]
    assert all(len(run) == 1 for run in runs), "runs have 10 images, the last one 5"
    assert drawn != sorted(drawn)


def test_shard_order_differs_between_passes_and_seeds() -> None:
    sizes, orders, firsts = [6] * 8, set(), set()
    for seed in range(3):
        drawn = ShardOrder(np.array(sizes), 2, seed)(np.arange(3 * 48)).reshape(3, 48)
        orders |= {tuple(each.tolist()) for each in drawn}
        firsts |= {frozenset(shard_of(i, sizes) for i in each[:12]) for each in drawn}
    assert len(orders) == 9
    assert len(firsts) > 4, "28 pairs of shards can come first"


def test_window_of_all_shards_mixes_evenly() -> None:
    n, sizes = 400, np.array([2, 3, 5])
    drawn = ShardOrder(sizes, 3, seed=0)(np.arange(n * 10)).reshape(n, 10)
    for place in (0, 4, 9):
        times = np.bincount(drawn[:, place], minlength=10)
        assert np.abs(times - n / 10).max() < 5 * np.sqrt(n / 10 * 0.9)


def test_shard_order_has_no_memory() -> None:
    sizes = np.array([7, 1, 1, 30, 0, 2])
    whole = ShardOrder(sizes, 2, seed=5)(np.arange(200)).tolist()
    other = ShardOrder(sizes, 2, seed=5)
    for position in (199, 0, 41, 40, 82, 3):
        assert other(np.array([position])).tolist() == [whole[position]]


def test_later_start_with_shards_yields_same_tail() -> None:
    order = ShardOrder(np.array([9, 2, 20]), 1, seed=9)
    whole = list(MixedBatches(5, 31, 1, 2, total=62, seed=9, unlabeled_order=order))
    tail = MixedBatches(5, 31, 1, 2, total=62, seed=9, start=17, unlabeled_order=order)
    assert list(tail) == whole[17:]
    plain = list(MixedBatches(5, 31, 1, 2, total=62, seed=9))
    assert indices(whole, labeled=True) == indices(plain, labeled=True), "labeled images are shuffled"
    assert indices(whole, labeled=False) != indices(plain, labeled=False)
