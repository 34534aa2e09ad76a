"""Which blocks of a vision transformer feed the decoder."""

from collections.abc import Sequence

from depthany.models.encoder import Four

TAPS = ("v1", "v2")
DEPTH_24 = (4, 11, 17, 23)  # Depth Anything V2's choice for vitl; other depths are split evenly


def tapped_blocks(taps: str | Sequence[int], depth: int, name: str) -> Four:
    """Returns the numbers, from 0, of the four blocks that feed the decoder, shallowest first.

    V1 taps the last four; its authors call this unintentional and without effect on quality. V2 spreads
    them.

    Args:
        taps: "v1" (the last four), "v2" (spread over the depth), or four increasing block numbers.
        depth: blocks of the transformer.
        name: name of the transformer, for messages.

    Raises:
        ValueError: the taps are anything else, or there are fewer than four blocks.
    """
    if depth < 4:
        raise ValueError(f"{name} has {depth} blocks; an encoder needs 4 or more")
    if taps == "v1":
        return depth - 4, depth - 3, depth - 2, depth - 1
    if taps == "v2":
        return DEPTH_24 if depth == 24 else (depth // 4 - 1, depth // 2 - 1, depth * 3 // 4 - 1, depth - 1)
    blocks = [] if isinstance(taps, str) else list(taps)
    are_numbers = all(isinstance(block, int) and not isinstance(block, bool) for block in blocks)
    if len(blocks) != 4 or not are_numbers or blocks != sorted(set(blocks) & set(range(depth))):
        raise ValueError(
            f"taps={taps!r}: choose from {', '.join(TAPS)}, or list four block numbers in increasing order, "
            f"for {name} from 0 to {depth - 1}"
        )
    first, second, third, fourth = blocks
    return first, second, third, fourth
