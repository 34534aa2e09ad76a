"""A store of pseudo-labels with its images, shown as a labeled data set."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from depthany.data.pseudo_labels.shards import Shard
from depthany.data.pseudo_labels.store import PseudoLabels
from depthany.data.samples import UnlabeledSet
from depthany.data.targets import Labels, Unit


class LabeledImages:
    """The images of a data set that have a label in a store. The store need not be complete.

    Args:
        store: folder of the store.
        name: name of the data set in the store.
        images: the data set.
    """

    unit: Unit = "disparity"

    def __init__(self, store: Path, name: str, images: UnlabeledSet) -> None:
        self.images, self._labels, self._name = images, PseudoLabels(store, [name]), name

    def some(self, count: int, random: np.random.Generator) -> list[int]:
        """Returns at most `count` random images that have a label, from random shards."""
        store, header = self._labels.store, self._labels.settings
        done = [s for s in header.shards() if s.set == self._name and s.record_path(store).exists()]
        chosen: set[int] = set()
        for k in random.permutation(len(done))[:count]:
            left = -(-count // min(len(done), count))
            labeled = Shard(done[k].path(store)).index
            chosen |= {int(i) for i in random.permutation(labeled)[:left]}
        return sorted(chosen)[:count]

    def name(self, index: int) -> str:
        """Returns the path of image `index`."""
        return self.images.name(index)

    def stored_image(self, index: int) -> bytes | NDArray[np.uint8]:
        """Returns image `index` as the data set stores it."""
        return self.images.stored_image(index)

    def labels(self, index: int) -> Labels:
        """Returns the disparity [h w] of an image; every pixel is valid."""
        label = self._labels.read(0, index)
        assert label is not None
        return Labels(label.disparity, "disparity", np.ones(label.disparity.shape, bool))
