"""The order of the images: each exactly once a pass, from (seed, position) alone."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from depthany.data.sampler import Draw, MixedBatches, shuffled


def passes(count: int, seed: int = 0, stream: int = 0, n: int = 3) -> list[list[int]]:
    drawn = shuffled(np.arange(n * count), count, seed, stream).tolist()
    return [drawn[i * count : (i + 1) * count] for i in range(n)]


def indices(batches: list[list[Draw]], labeled: bool) -> list[int]:
    return [draw.index for batch in batches for draw in batch if draw.labeled is labeled]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 1000, 4097])
def test_every_pass_draws_every_image_exactly_once(count: int) -> None:
    for drawn in passes(count):
        assert sorted(drawn) == list(range(count))


def test_order_differs_from_pass_to_pass_seed_to_seed_and_stream_to_stream() -> None:
    orders = [*passes(50), *passes(50, seed=1), *passes(50, stream=1)]
    assert len({tuple(order) for order in orders}) == 9


def test_a_position_gives_the_same_image_whoever_else_is_asked_for() -> None:
    whole = shuffled(np.arange(300), 77, seed=5)
    for position in (299, 0, 76, 77, 150):
        assert shuffled(np.array([position]), 77, seed=5).tolist() == [whole[position]]


@pytest.mark.parametrize("count", [5, 40, 300])
def test_every_image_comes_first_and_last_and_second_about_equally_often(count: int) -> None:
    n = 20_000
    orders = shuffled(np.arange(n * count), count, seed=0).reshape(n, count)
    expected, deviation = n / count, np.sqrt(n / count * (1 - 1 / count))
    for place in (0, 1, -1):
        times = np.bincount(orders[:, place], minlength=count)
        assert np.abs(times - expected).max() < 5 * deviation


def test_every_image_follows_every_other_about_equally_often() -> None:
    n = 20_000
    orders = shuffled(np.arange(n * 5), 5, seed=0).reshape(n, 5)
    following = Counter((a, b) for order in orders.tolist() for a, b in pairwise(order))
    assert len(following) == 20
    assert all(abs(times - 4000) < 5 * 60 for times in following.values())


def test_one_pass_over_seven_unlabeled_images_by_twos_ends_in_a_batch_of_one_to_one() -> None:
    batches = list(MixedBatches(5, 7, 1, 2, total=7, seed=0))
    assert [[draw.labeled for draw in batch] for batch in batches] == [[True, False, False]] * 3 + [
        [True, False]
    ]
    assert sorted(indices(batches, labeled=False)) == list(range(7))


def test_passes_over_the_unlabeled_set_use_the_labeled_images_equally() -> None:
    batches = list(MixedBatches(5, 10, 2, 4, total=60, seed=3))  # 6 passes, 30 labeled draws
    assert Counter(indices(batches, labeled=False)) == dict.fromkeys(range(10), 6)
    labeled = indices(batches, labeled=True)
    assert Counter(labeled) == dict.fromkeys(range(5), 6)
    orders = {tuple(labeled[i : i + 5]) for i in range(0, 30, 5)}
    assert len(orders) > 1, "the labeled set is reshuffled for each pass"


def test_labeled_and_unlabeled_images_are_not_paired_alike_where_the_sets_are_of_one_size() -> None:
    batches = list(MixedBatches(50, 50, 1, 1, total=50, seed=0))
    assert sum(a.index == b.index for a, b in batches) < 10  # 1 to be expected


def test_teacher_epochs_count_labeled_images() -> None:
    batches = list(MixedBatches(10, 0, 4, 0, total=20, seed=0))
    assert [len(batch) for batch in batches] == [4] * 5
    assert Counter(indices(batches, labeled=True)) == dict.fromkeys(range(10), 2)


@pytest.mark.parametrize("start", [0, 1, 7, 15, 16])
def test_a_sampler_that_starts_later_gives_the_tail_of_the_same_list(start: int) -> None:
    whole = list(MixedBatches(5, 31, 1, 2, total=31, seed=9))
    tail = MixedBatches(5, 31, 1, 2, total=31, seed=9, start=start)
    assert list(tail) == whole[start:]
    assert len(tail) == len(whole) - start


def test_an_image_is_cut_differently_each_time_it_is_drawn() -> None:
    draws = [draw for batch in MixedBatches(3, 4, 1, 2, total=40, seed=0) for draw in batch]
    assert len({draw.seed for draw in draws}) == len(draws)
