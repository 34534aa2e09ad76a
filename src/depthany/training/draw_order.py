"""The order in which a run draws images, from its settings."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from depthany.data.dataset import TrainingSet
from depthany.data.sampler import Order, ShardOrder
from depthany.data.weighted import WeightedOrder, seed_of_set
from depthany.training.checks import rooted, set_weights
from depthany.training.settings import TrainSettings


def build_order(settings: TrainSettings, kind: str, sets: Sequence[Any]) -> Order | None:
    """Returns the order of the labeled or unlabeled images; None = all are shuffled together (paper)."""
    data, seed, stream = settings.data, settings.seed, int(kind == "labeled")
    by_shards = kind == "unlabeled" and data.order == "shards"
    weights = set_weights(settings, kind)
    if weights is None or not sets:
        if not by_shards or not sets:
            return None
        return ShardOrder(np.concatenate([part.shard_sizes() for part in sets]), data.window, seed)
    within = [
        ShardOrder(part.shard_sizes(), data.window, seed_of_set(seed, stream, k))
        for k, part in enumerate(sets if by_shards else ())
    ]
    return WeightedOrder([len(part) for part in sets], weights, seed, stream, within or None)


def weight_notes(settings: TrainSettings, dataset: TrainingSet) -> list[str]:
    """Returns a line for each kind of images that is drawn by weight, on what the weights come to."""
    notes = []
    for kind, sets, every in (
        ("labeled", dataset.labeled, "an epoch"),
        ("unlabeled", dataset.unlabeled, "a pass"),
    ):
        order = build_order(settings, kind, sets)
        if isinstance(order, WeightedOrder):
            notes.append(f"{kind} images are {order.describe(rooted(getattr(settings.data, kind)), every)}")
    return notes
