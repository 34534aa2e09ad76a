"""Threads that read ahead of the model and work behind it, in queues of bounded length; batches between."""

from collections import defaultdict, deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int
) -> Generator[Result, None, None]:
    """`function(item)` of each item, in order, computed in threads before it is asked for.

    Args:
        ahead: results that wait or are being computed at any time, besides the one handed out.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def batches_of_equal(
    items: Iterable[Item], key: Callable[[Item], Hashable], batch_size: int
) -> Iterator[list[Item]]:
    """Items with one key, `batch_size` together, fewer where too many others would wait."""
    waiting: dict[Hashable, list[Item]] = defaultdict(list)
    for item in items:
        group = waiting[key(item)]
        group.append(item)
        if len(group) == batch_size:
            yield waiting.pop(key(item))
        elif sum(len(each) for each in waiting.values()) == 2 * batch_size:
            yield waiting.pop(max(waiting, key=lambda each: len(waiting[each])))
    yield from waiting.values()


class Behind:
    """Threads that finish what is handed to them; all of it is done when the `with` block ends.

    A failure is raised by a later `submit` or by the end of the block. If the block ends by an exception,
    what has not begun is dropped.

    Args:
        threads: 1 keeps the order.
        pending: jobs that may wait; `submit` waits for the oldest when there are more.
    """

    def __init__(self, threads: int, pending: int) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self._pending = pending
        self._waiting: deque[Future[object]] = deque()

    def submit(self, function: Callable[..., object], *arguments: Any) -> None:
        """Have `function(*arguments)` called."""
        self._waiting.append(self._pool.submit(function, *arguments))
        while self._waiting and (len(self._waiting) > self._pending or self._waiting[0].done()):
            self._waiting.popleft().result()

    def __enter__(self) -> "Behind":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        try:
            while kind is None and self._waiting:
                self._waiting.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)
