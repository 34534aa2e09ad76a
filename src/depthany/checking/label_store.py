"""Checks a store of pseudo-labels, and draws some of its labels beside their images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from depthany.checking.pseudo_labeled import LabeledImages
from depthany.checking.sheet import draw_sheet
from depthany.data.pseudo_labels.store import describe_sets, differences, read_manifest
from depthany.data.pseudo_labels.verify import verify_shards
from depthany.display.progress import Bar
from depthany.system.plurals import counted

SHEET = "contact.jpg"


def verify_store(store: Path) -> int:
    """Checks every byte and count of a store and prints what is wrong; returns 0 if nothing is, else 1."""
    header, _ = read_manifest(store)
    problems, labels, wrong = 0, 0, 0
    with Bar("shards", len(header.shards())) as bar:
        for checked in verify_shards(store):
            labels += checked.labels
            wrong += bool(checked.problems)
            problems += len(checked.problems)
            for problem in checked.problems:
                print(problem, flush=True)
            bar.advance()
    shards, images = len(header.shards()), sum(entry["images"] for entry in header.sets.values())
    if problems:
        print(
            f"{store}: {problems} problems in {wrong} of {shards} shards; delete the .json of each "
            "damaged shard and label again with the settings of the store to rewrite it"
        )
        return 1
    stored = f"{counted(labels, 'label')} of {counted(images, 'image')} in {counted(shards, 'shard')}"
    print(f"{store}: all is well, {stored}")
    return 0


def draw_labels(store: Path, sets: Mapping[str, Any], count: int, convert_images: bool = False) -> None:
    """Writes a picture of images and their labels for every set that the store has labels of.

    Args:
        sets: unlabeled sets by name, including those that the store has no labels for.
        count: number of images drawn from each set.
        convert_images: accept gray, RGBA, CMYK and 16-bit images.

    Raises:
        ValueError: the store has labels for none of the sets, or the images of a set have changed since.
    """
    header, _ = read_manifest(store)
    known = {name: images for name, images in sets.items() if name in header.sets}
    if changed := differences(
        {name: header.sets[name] for name in known}, describe_sets(known), "labeled", "now"
    ):
        raise ValueError(f"{store} has labels for other images than those of data=...: {'; '.join(changed)}")
    if not known:
        raise ValueError(f"{store} has labels for {', '.join(header.sets)}; data=... names none of them")
    for name, images in known.items():
        labeled = LabeledImages(store, name, images)
        chosen = labeled.some(count, np.random.default_rng(0))
        if not chosen:
            print(f"{name}: no label yet")
            continue
        path = store / (SHEET if len(known) == 1 else f"{name}_{SHEET}")
        title = f"{name}: {len(chosen)} of {len(images)} images and their pseudo-labels, {store}"
        draw_sheet(labeled, chosen, path, title, convert_images)
        print(f"{name}: {path}")
