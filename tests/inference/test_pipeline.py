"""The pipeline around the model: batches, order, bounds and failures."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch

from depthany.inference.pipeline import (
    BackgroundPool,
    Skipped,
    batches_of_equal_shapes,
    iterate_ahead,
    map_ahead,
    run_pipeline,
)
from depthany.inference.predictor import PreparedImage


@dataclass(frozen=True)
class Number(PreparedImage):
    number: int


def image(number: int, width: int = 1) -> Number:
    return Number(str(number), (torch.empty(width),), (1, width), number)


class Calls:
    """What a pipeline did: batches that were predicted, items finished and skipped, in their order."""

    def __init__(self, widths: int = 1) -> None:
        self.widths = widths
        self.batches: list[list[int]] = []
        self.finished: list[int] = []
        self.skipped: list[int] = []

    def read(self, number: int) -> Number | Skipped[int]:
        if number % 10 == 7:
            return Skipped(number, f"{number} is unreadable")
        return image(number, width=1 + number % self.widths)

    def predict(self, images: Sequence[Number]) -> list[int]:
        self.batches.append([each.number for each in images])
        return [10 * each.number for each in images]

    def finish(self, each: Number, result: int) -> None:
        assert result == 10 * each.number
        self.finished.append(each.number)

    def skip(self, skipped: Skipped[int]) -> None:
        self.skipped.append(skipped.item)

    def run(self, items: object, **more: object) -> None:
        arguments = {"batch_size": 3, "threads": 2, "skip": self.skip, **more}
        run_pipeline(items, self.read, self.predict, self.finish, **arguments)  # type: ignore[arg-type]


def test_every_item_is_finished_or_skipped_once() -> None:
    calls = Calls(widths=3)
    calls.run(range(50))
    assert calls.skipped == [7, 17, 27, 37, 47]
    assert sorted(calls.finished + calls.skipped) == list(range(50))
    assert all(len({number % 3 for number in batch}) == 1 for batch in calls.batches)


def test_no_batch_holds_two_groups() -> None:
    calls, done = Calls(), []
    calls.run(range(16), group_of=lambda number: number // 8, group_done=done.append)
    assert calls.batches == [[0, 1, 2], [3, 4, 5], [6], [8, 9, 10], [11, 12, 13], [14, 15]]
    assert done == [0, 1]


def test_group_is_done_when_its_items_are_finished() -> None:
    calls, seen = Calls(), []
    finish = calls.finish
    calls.finish = lambda each, result: (time.sleep(0.02), finish(each, result))  # type: ignore[method-assign]
    calls.run(
        range(8), group_of=lambda number: number // 4, group_done=lambda _: seen.append(len(calls.finished))
    )
    assert seen == [4, 7]  # 7 is unreadable


def test_group_without_readable_item_is_done_too() -> None:
    calls, done = Calls(), []
    calls.run([7, 17, 1], group_of=lambda number: number > 1, group_done=done.append)
    assert (done, calls.skipped, calls.finished) == ([True, False], [7, 17], [1])


def test_one_thread_keeps_the_order_of_prepared_images() -> None:
    calls = Calls()
    frames = (image(number) for number in range(20))
    run_pipeline(frames, None, calls.predict, calls.finish, batch_size=3, threads=1)
    assert calls.finished == list(range(20))


def test_items_are_taken_as_they_are_needed() -> None:
    taken: list[int] = []
    calls, ahead = Calls(), []

    def items() -> Iterator[int]:
        for number in range(0, 1000, 10):
            taken.append(number)
            yield number

    predict = calls.predict

    def watched(images: Sequence[Number]) -> list[int]:
        ahead.append(len(taken) - sum(map(len, calls.batches)))
        return predict(images)

    calls.predict = watched  # type: ignore[method-assign]
    calls.run(items())
    assert len(calls.finished) == 100
    assert max(ahead) <= 3 + (3 + 2) + 1  # a batch, the queue and the threads, the item that is added


@pytest.mark.parametrize("stage", ["read", "predict", "finish", "skip"])
def test_failure_of_a_stage_ends_the_pipeline(stage: str) -> None:
    calls = Calls()
    whole = getattr(calls, stage)

    def fail(*arguments: object) -> object:
        if len(calls.finished) > 20:
            raise ValueError(f"{stage} failed")
        return whole(*arguments)

    setattr(calls, stage, fail)
    with pytest.raises(ValueError, match=f"{stage} failed"):
        calls.run(range(1000))
    assert len(calls.finished) < 60


def test_ctrl_c_ends_the_pipeline() -> None:
    calls = Calls()
    predict = calls.predict

    def interrupted(images: Sequence[Number]) -> list[int]:
        if len(calls.batches) == 4:
            raise KeyboardInterrupt
        return predict(images)

    calls.predict = interrupted  # type: ignore[method-assign]
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        calls.run(range(1000))
    assert len(calls.finished) <= 12
    assert threading.active_count() == before


def test_full_shapes_go_first_then_the_rest() -> None:
    images = [image(number, width) for number, width in enumerate([1, 2, 1, 3, 1, 2, 4])]
    batches = [[each.number for each in batch] for batch in batches_of_equal_shapes(images, 3)]
    assert batches == [[0, 2, 4], [1, 5], [3], [6]]


def test_largest_batch_goes_when_too_many_wait() -> None:
    images = [image(number, width) for number, width in enumerate([1, 2, 3, 2, 4, 5])]
    batches = [[each.number for each in batch] for batch in batches_of_equal_shapes(images, 3)]
    assert batches[0] == [1, 3]


def test_iterator_runs_ahead_in_another_thread() -> None:
    threads = set()

    def items() -> Iterator[int]:
        for number in range(9):
            threads.add(threading.get_ident())
            yield number

    assert list(iterate_ahead(items(), ahead=3)) == list(range(9))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_results_come_in_order() -> None:
    def slow_if_even(number: int) -> int:
        time.sleep(0.01 * (number % 2 == 0))
        return number

    assert list(map_ahead(slow_if_even, range(12), threads=4, ahead=6)) == list(range(12))


def test_read_ahead_is_bounded() -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    results = map_ahead(lambda number: number, items(), threads=2, ahead=3)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(taken) <= 5 + 3
    results.close()
    assert len(taken) <= 5 + 3


def test_reading_overlaps_with_the_model() -> None:
    began = time.perf_counter()
    for _ in map_ahead(lambda _: time.sleep(0.02), range(10), threads=1, ahead=2):
        time.sleep(0.02)
    assert time.perf_counter() - began < 0.34  # one after the other it would take 0.40


def test_failure_is_raised_at_its_place() -> None:
    results = map_ahead(lambda number: 1 // number, [1, 1, 0, 1], threads=2, ahead=4)
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_everything_is_done_when_the_block_ends() -> None:
    written: list[int] = []
    with BackgroundPool(threads=2, pending=3) as writers:
        for number in range(20):
            writers.submit(written.append, number)
    assert sorted(written) == list(range(20))


def test_one_thread_keeps_the_order() -> None:
    written: list[int] = []
    with BackgroundPool(threads=1, pending=4) as writers:
        for number in range(50):
            writers.submit(written.append, number)
    assert written == list(range(50))


def test_failed_write_drops_the_rest() -> None:
    written: list[int] = []

    def write(number: int) -> None:
        if number == 2:
            raise ValueError("disk full")
        written.append(number)

    def write_all() -> None:
        with BackgroundPool(threads=1, pending=2) as writers:
            for number in range(1000):
                writers.submit(write, number)

    with pytest.raises(ValueError, match="disk full"):
        write_all()
    assert len(written) < 20


def test_queue_behind_the_model_is_bounded() -> None:
    gate, waiting = threading.Event(), []
    threading.Timer(0.1, gate.set).start()
    with BackgroundPool(threads=1, pending=3) as writers:
        for number in range(6):
            writers.submit(gate.wait)
            if not gate.is_set():
                waiting.append(number)
    assert len(waiting) <= 3
