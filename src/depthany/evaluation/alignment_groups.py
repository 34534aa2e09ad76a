"""Which images are fitted to their ground truth together, and when all of them are there."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping
from threading import Lock

from depthany.evaluation.protocol import Protocol
from depthany.evaluation.score import Pixels


class AlignmentGroups:
    """Collects the pixels of images that are fitted to their ground truth together; threads may call it.

    Args:
        names: by index, of all images that will be added or dropped.
    """

    def __init__(self, names: Mapping[int, str], protocol: Protocol) -> None:
        self._names, self._is_per_sequence = names, protocol.align_per == "sequence"
        self._open = Counter(self.key(index) for index in names)
        self._waiting: dict[Hashable, list[Pixels]] = defaultdict(list)
        self._lock = Lock()

    def key(self, index: int) -> Hashable:
        """Returns the group of an image: its sequence, which is its folder, or itself."""
        return self._names[index].rpartition("/")[0] if self._is_per_sequence else index

    def add(self, index: int, pixels: Pixels | None) -> list[Pixels]:
        """Adds an image, or drops it (None); returns the group if it is now complete, else an empty list."""
        with self._lock:
            key = self.key(index)
            if pixels is not None:
                self._waiting[key].append(pixels)
            self._open[key] -= 1
            return [] if self._open[key] else self._waiting.pop(key, [])
