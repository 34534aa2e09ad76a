"""Sets drawn by weight: the shares, passes over each set, and that an index depends on its position alone."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from depthany.data.sampler import MixedBatches, ShardOrder
from depthany.data.weighted import BLOCK, WeightedOrder, seed_of_set, shares

COUNTS = [5, 7, 1000]  # images of three sets
ENDS = [0, 5, 12, 1012]


def order(weights: tuple[float, ...] = (2, 1, 1), seed: int = 0) -> WeightedOrder:
    return WeightedOrder(COUNTS, weights, seed, stream=1)


def of_set(indices: np.ndarray, k: int) -> list[int]:
    """Those of the indices that are of set `k`, in order."""
    return [int(i) for i in indices if ENDS[k] <= i < ENDS[k + 1]]


@pytest.mark.parametrize(
    "weights, expected",
    [
        ((2, 1, 1), [5000, 2500, 2500]),
        ((1, 1, 1), [3334, 3333, 3333]),
        ((0.3, 0.3, 0.4), [3000, 3000, 4000]),
        ((1e-9, 1, 3), [1, 2500, 7499]),
    ],
)
def test_every_block_has_the_shares(weights: tuple[float, ...], expected: list[int]) -> None:
    assert shares(weights).tolist() == expected
    for block in (0, 3):
        drawn = order(weights)(np.arange(BLOCK) + block * BLOCK)
        assert [len(of_set(drawn, k)) for k in range(3)] == expected


def test_each_set_is_drawn_in_whole_passes() -> None:
    drawn = order()(np.arange(2 * BLOCK))
    for k, count in enumerate(COUNTS):
        images = of_set(drawn, k)
        passes = [images[i : i + count] for i in range(0, len(images) - count + 1, count)]
        assert len(passes) == 2 * BLOCK * (0.5, 0.25, 0.25)[k] // count
        assert all(sorted(each) == list(range(ENDS[k], ENDS[k + 1])) for each in passes)
        assert len({tuple(each) for each in passes}) > 1, "reshuffled for each pass"


def test_sets_are_mixed_within_a_block() -> None:
    drawn = order()(np.arange(BLOCK))
    for part in np.split(drawn, 20):  # of 500: 250 to be expected, and a deviation of 11
        assert abs(len(of_set(part, 0)) - 250) < 55


def test_index_depends_on_its_position_alone() -> None:
    whole = order()(np.arange(3 * BLOCK))
    other = order()
    for positions in ([29_999], [0, 1], [9_999, 10_000], [20_000]):
        assert other(np.array(positions)).tolist() == whole[positions].tolist()
    assert (order(seed=1)(np.arange(100)) != whole[:100]).any()


def test_order_within_a_set_may_go_by_shards() -> None:
    sizes = [np.array([3, 4]), np.array([6] * 10)]
    within = [ShardOrder(each, 2, seed_of_set(0, 0, k)) for k, each in enumerate(sizes)]
    drawn = WeightedOrder([7, 60], [1, 3], 0, 0, within)(np.arange(400))
    small, large = drawn[drawn < 7], drawn[drawn >= 7] - 7
    assert small.tolist() == within[0](np.arange(len(small))).tolist()
    assert large.tolist() == within[1](np.arange(len(large))).tolist()


def test_resumed_and_shared_batches_are_the_same() -> None:
    def batches(start: int = 0, rank: int = 0, size: int = 1) -> list:
        orders = {"labeled_order": order(), "unlabeled_order": WeightedOrder([9, 9], [1, 8], 0, 0)}
        return list(MixedBatches(1012, 18, 4, 8, 240, 0, start, rank=rank, size=size, **orders))

    whole = batches()
    assert batches(start=25) == whole[25:]
    for mine, others, both in zip(batches(rank=0, size=2), batches(rank=1, size=2), whole):
        assert sorted([*mine, *others], key=repr) == sorted(both, key=repr)
    unlabeled = Counter(draw.index >= 9 for batch in whole for draw in batch if not draw.labeled)
    assert unlabeled[True] == pytest.approx(240 * 8 / 9, abs=25)


def two_sets(world, run_dir: Path, *more: str) -> list[str]:
    """A teacher of two labeled sets."""
    other = (
        f"{{_target_:depthany.data.folder_depth.FolderDepth,root:'{world.root / 'val'}',depth_scale:1000}}"
    )
    return world.settings("teacher", run_dir, f"+data.labeled.other={other}", "steps=2", *more)


def test_run_says_what_the_weights_come_to(start, tiny_world, tmp_path: Path) -> None:
    ended = start(two_sets(tiny_world, tmp_path / "run", "data.weights.labeled={mine:1,other:3}"))
    assert ended.code == 0, ended.err
    assert (
        "labeled images are drawn by weight, 7 images an epoch: mine 25.0% (0.44 times its 4 images), "
        "other 75.0% (1.75 times its 3 images)"
    ) in ended.out


@pytest.mark.parametrize(
    "weights, message",
    [
        ("{mine:1,mien:3}", "data.weights.labeled.mien: no such labeled set; the sets are: mine, other"),
        ("{mine:1}", "data.weights.labeled lacks some of the sets: add data.weights.labeled.other=..."),
        ("{mine:1,other:0}", "data.weights.labeled.other=0.0: expected more than 0"),
    ],
)
def test_wrong_weights_are_refused(start, tiny_world, tmp_path: Path, weights: str, message: str) -> None:
    ended = start(two_sets(tiny_world, tmp_path / "run", f"data.weights.labeled={weights}"))
    assert ended.code == 2
    assert message in ended.err


def test_teacher_ignores_weights_of_unlabeled_sets(start, tiny_world, tmp_path: Path) -> None:
    ended = start(two_sets(tiny_world, tmp_path / "run", "data.weights.unlabeled={mine:2}"))
    assert ended.code == 0, ended.err
    assert "by weight" not in ended.out
