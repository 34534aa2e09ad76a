"""Threads around the model: order, bounds and failures."""

import threading
import time
from collections.abc import Iterator

import pytest

from depthany.inference.pipeline import Behind, map_ahead


def test_results_come_in_order_though_later_ones_are_ready_first() -> None:
    def slow_if_even(number: int) -> int:
        time.sleep(0.01 * (number % 2 == 0))
        return number

    assert list(map_ahead(slow_if_even, range(12), threads=4, ahead=6)) == list(range(12))


def test_no_more_is_read_ahead_than_said() -> None:
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


def test_reading_is_done_while_the_model_works() -> None:
    began = time.perf_counter()
    for _ in map_ahead(lambda _: time.sleep(0.02), range(10), threads=1, ahead=2):
        time.sleep(0.02)
    assert time.perf_counter() - began < 0.34  # one after the other it would take 0.40


def test_a_failure_comes_at_its_place() -> None:
    results = map_ahead(lambda number: 1 // number, [1, 1, 0, 1], threads=2, ahead=4)
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_all_is_written_when_the_block_ends() -> None:
    written: list[int] = []
    with Behind(threads=2, pending=3) as writers:
        for number in range(20):
            writers.submit(written.append, number)
    assert sorted(written) == list(range(20))


def test_one_thread_writes_in_order() -> None:
    written: list[int] = []
    with Behind(threads=1, pending=4) as writers:
        for number in range(50):
            writers.submit(written.append, number)
    assert written == list(range(50))


def test_a_failed_write_ends_the_block_and_what_has_not_begun_is_dropped() -> None:
    written: list[int] = []

    def write(number: int) -> None:
        if number == 2:
            raise ValueError("disk full")
        written.append(number)

    def write_all() -> None:
        with Behind(threads=1, pending=2) as writers:
            for number in range(1000):
                writers.submit(write, number)

    with pytest.raises(ValueError, match="disk full"):
        write_all()
    assert len(written) < 20


def test_no_more_waits_to_be_written_than_said() -> None:
    gate, waiting = threading.Event(), []
    threading.Timer(0.1, gate.set).start()
    with Behind(threads=1, pending=3) as writers:
        for number in range(6):
            writers.submit(gate.wait)
            if not gate.is_set():
                waiting.append(number)
    assert len(waiting) <= 3
