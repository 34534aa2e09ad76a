"""Which images may go through the model together, whatever the number of processes."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable

_BATCHES = 8  # of a block; images of two random shapes then fill 9 of 10 places in their batches
_FEWEST = 2  # batches of a block in a small set; they fill 7 of 10 places
_BLOCKS = 32  # of a set, if it is large enough, so that all processes get about the same work


def block_size(images: int, batch_size: int) -> int:
    """Returns the number of images of a block: 2 to 8 batches, growing with the set."""
    return batch_size * min(_BATCHES, max(_FEWEST, images // (_BLOCKS * batch_size)))


def cut_into_blocks(
    indices: Iterable[int], batch_size: int, together: Callable[[int], Hashable] = lambda index: index
) -> list[list[int]]:
    """Cuts a set into blocks of consecutive images.

    A process takes whole blocks, and no batch crosses the end of a block. The rounding of a prediction
    depends on its batch; this way it is the same for any number of processes.

    Args:
        together: images with the same value of this function stay in one block, next to one another.
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
