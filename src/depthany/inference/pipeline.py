"""The pipeline that predicts many images: threads read ahead of the model and finish its results behind it.

Photos, videos, pseudo-labels and evaluation all run through `run_pipeline`. The queues between its stages are
bounded, so that memory does not grow with the number of images.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby, repeat, takewhile
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

from depthany.inference.predictor import PreparedImage

Item = TypeVar("Item")
Image = TypeVar("Image", bound=PreparedImage)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Skipped(Generic[Item]):
    """An item that is not predicted, because it cannot be read.

    Attributes:
        item: as it was passed to the pipeline.
        message: one line that names the item and says what is wrong with it.
        reason: a few words that many items share; they are counted by it.
    """

    item: Item
    message: str
    reason: str = ""


def run_pipeline(
    items: Iterable[Item],
    read: Callable[[Item], Image | Skipped[Item]] | None,
    predict: Callable[[Sequence[Image]], Iterable[Result]],
    finish: Callable[[Image, Result], object],
    *,
    batch_size: int,
    threads: int,
    queue: int | None = None,
    skip: Callable[[Skipped[Item]], object] | None = None,
    group_of: Callable[[Item], Any] = lambda item: None,
    group_done: Callable[[Any], object] | None = None,
) -> None:
    """Reads, predicts and finishes every item; images of equal input shapes share a batch.

    `predict`, `skip` and `group_done` are called in the calling thread. At most `queue` + `threads` images
    wait in front of the batches, 2 * `batch_size` in the batches and `queue`, or `threads` if these are more,
    behind the model. If a stage fails, no further item is begun and its exception is raised here; the same
    holds for Ctrl-C.

    Args:
        items: what is predicted, in order; iterated lazily.
        read: reads and prepares an item, called in `threads` threads. None: the items are prepared images,
            and one thread iterates over them, such as over the frames of a video.
        predict: predicts a batch; returns the result of each of its images, in order.
        finish: uses an image and its result, called in `threads` threads. One thread keeps the order of the
            predictions.
        queue: number of images that may wait to be batched, and to be finished; None: `batch_size`.
        skip: called with each `Skipped` that `read` returns.
        group_of: group of an item. The items of a group follow one another; no batch holds two groups.
        group_done: called with a group when all of its items are finished or skipped.
    """
    queue = batch_size if queue is None else queue
    ahead = _read_ahead(items, read, threads, queue + threads)
    with closing(ahead) as images, BackgroundPool(threads, max(queue, threads)) as work:
        for group, members in groupby(images, key=lambda pair: group_of(pair[0])):
            readable: Iterator[Image] = _readable((image for _, image in members), skip)
            for batch in batches_of_equal_shapes(readable, batch_size):
                for image, result in zip(batch, predict(batch), strict=True):
                    work.submit(finish, image, result)
            if group_done is not None:
                work.wait()
                group_done(group)


def _read_ahead(
    items: Iterable[Item], read: Callable[[Item], Any] | None, threads: int, ahead: int
) -> Generator[tuple[Item, Any], None, None]:
    """Yields each item with its image, or with `Skipped`."""
    if read is None:
        return iterate_ahead(((item, item) for item in items), ahead)
    return map_ahead(lambda item: (item, read(item)), items, threads, ahead)


def _readable(
    images: Iterable[Image | Skipped[Item]], skip: Callable[[Skipped[Item]], object] | None
) -> Iterator[Image]:
    """Yields the images that were read; calls `skip` with the others on the way."""
    for image in images:
        if not isinstance(image, Skipped):
            yield image
        else:
            assert skip is not None, image.message
            skip(image)


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int
) -> Generator[Result, None, None]:
    """Yields `function(item)` for each item, in order, computed in threads before it is needed.

    Args:
        ahead: number of results that wait or are being computed, besides the one that was yielded last.
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


def iterate_ahead(items: Iterable[Item], ahead: int) -> Generator[Item, None, None]:
    """Yields the items; one thread iterates over them before they are needed. See `map_ahead`."""
    source, end = iter(items), cast(Item, object())
    with closing(map_ahead(lambda _: next(source, end), repeat(None), 1, ahead)) as taken:
        yield from takewhile(lambda item: item is not end, taken)


def batches_of_equal_shapes(images: Iterable[Image], batch_size: int) -> Iterator[list[Image]]:
    """Yields batches of `batch_size` images of equal input shapes.

    A batch is smaller at the end, or if 2 * `batch_size` images of several shapes wait: then the largest
    batch goes.
    """
    waiting: dict[Hashable, list[Image]] = defaultdict(list)
    for image in images:
        batch = waiting[image.shapes]
        batch.append(image)
        if len(batch) == batch_size:
            yield waiting.pop(image.shapes)
        elif sum(len(each) for each in waiting.values()) == 2 * batch_size:
            yield waiting.pop(max(waiting, key=lambda each: len(waiting[each])))
    yield from waiting.values()


class BackgroundPool:
    """Threads that finish work while the caller goes on; all of it is done when the `with` block ends.

    A failure is raised by a later `submit` or `wait`, or by the end of the block. If the block ends by an
    exception, work that has not begun is dropped.

    Args:
        threads: number of threads. One thread keeps the order.
        pending: number of jobs that may wait or run; with more, `submit` waits for the oldest.
    """

    def __init__(self, threads: int, pending: int) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self._pending = pending
        self._waiting: deque[Future[object]] = deque()

    def submit(self, function: Callable[..., object], *arguments: Any) -> None:
        """Calls `function(*arguments)` in a thread."""
        self._waiting.append(self._pool.submit(function, *arguments))
        while self._waiting and (len(self._waiting) > self._pending or self._waiting[0].done()):
            self._waiting.popleft().result()

    def wait(self) -> None:
        """Waits until everything that was submitted is done."""
        while self._waiting:
            self._waiting.popleft().result()

    def __enter__(self) -> "BackgroundPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._pool.shutdown(cancel_futures=True)
