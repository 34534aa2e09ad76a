"""Blocks of images that no batch crosses."""

from itertools import chain

import pytest

from depthany.evaluation.blocks import block_size, cut_into_blocks


@pytest.mark.parametrize("images, batch_size, expected", [(10, 4, 8), (1000, 4, 28), (100_000, 4, 32)])
def test_blocks_have_two_to_eight_batches(images: int, batch_size: int, expected: int) -> None:
    assert block_size(images, batch_size) == expected


def test_blocks_hold_every_image_once_in_order() -> None:
    blocks = cut_into_blocks(range(100), 3)
    assert list(chain.from_iterable(blocks)) == list(range(100))
    assert [len(block) for block in blocks] == [6] * 16 + [4]


def test_images_of_a_sequence_stay_in_one_block() -> None:
    blocks = cut_into_blocks(range(24), 2, together=lambda index: index % 3)
    assert blocks == [list(range(first, 24, 3)) for first in range(3)]


def test_short_sequences_share_a_block() -> None:
    blocks = cut_into_blocks(range(12), 2, together=lambda index: index // 3)
    assert blocks == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
