"""Which images may go through the model together, whatever the number of processes."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable

_BATCHES = 8  # of a block; images of two shapes by chance then fill 9 of 10 places of their batches
_FEWEST = 2  # in a small set: 7 of 10 places
_BLOCKS = 32  # that a set should give, so that processes have about the same to do


def block_size(images: int, batch_size: int) -> int:
    """Images of a block: 2 to 8 batches, growing with the set."""
    return batch_size * min(_BATCHES, max(_FEWEST, images // (_BLOCKS * batch_size)))


def cut(
    indices: Iterable[int], batch_size: int, together: Callable[[int], Hashable] = lambda index: index
) -> list[list[int]]:
    """Cut a set into blocks of consecutive images.

    A process takes whole blocks and no batch crosses the end of one. So a prediction, whose rounding depends
    on the batch that it is made in, is the same however many processes there are.

    Args:
        together: images of one value stay in one block, in which they follow one another.
    """
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index in indices:
        groups[together(index)].append(index)
    size = block_size(sum(map(len, groups.values())), batch_size)
    blocks: list[list[int]] = []
    for group in groups.values():
        if not blocks or len(blocks[-1]) >= size:
            blocks.append([])
        blocks[-1] += group
    return blocks
