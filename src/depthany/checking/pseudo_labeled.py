"""A store of pseudo-labels with its images, to be looked at as a labeled set is."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from depthany.data.pseudo_labels.shards import Shard
from depthany.data.pseudo_labels.store import PseudoLabels
from depthany.data.samples import Labels, UnlabeledSet


class LabeledImages:
    """The images of a set that have a label in a store, complete or not, as a set with depth to look at.

    Args:
        name: of the set in the store.
        images: the set itself.
    """

    in_disparity = True  # known up to scale and shift

    def __init__(self, store: Path, name: str, images: UnlabeledSet) -> None:
        self.images, self._labels, self._name = images, PseudoLabels(store, [name]), name

    def some(self, count: int, draw: np.random.Generator) -> list[int]:
        """At most `count` labeled images, drawn from shards that are drawn."""
        store, header = self._labels.store, self._labels.header
        done = [s for s in header.shards() if s.set == self._name and s.note_path(store).exists()]
        chosen: set[int] = set()
        for k in draw.permutation(len(done))[:count]:
            left = -(-count // min(len(done), count))
            labeled = Shard(done[k].path(store)).index
            chosen |= {int(i) for i in draw.permutation(labeled)[:left]}
        return sorted(chosen)[:count]

    def name(self, index: int) -> str:
        """Path of image `index`."""
        return self.images.name(index)

    def stored_image(self, index: int) -> bytes | NDArray[np.uint8]:
        """Image `index` as the set has it."""
        return self.images.stored_image(index)

    def labels(self, index: int) -> Labels:
        """Disparity [h w] and a mask that is True everywhere."""
        label = self._labels.read(0, index)
        assert label is not None
        return Labels(label.disparity, np.ones(label.disparity.shape, bool))
