"""Reads the images of several sets, and draws contact sheets of some of them."""

import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from depthany.checking.readers import Readers
from depthany.checking.summary import SetSummary
from depthany.display.progress import Bar


def read_sets(
    sets: Mapping[str, Any],
    summaries: Mapping[str, SetSummary],
    out: Path,
    readers: Readers,
    limit: int | None,
    seed: int,
    sheet_images: int,
) -> None:
    """Reads the images of all sets, adds what is found to their summaries, and writes the contact sheets.

    Args:
        sets, summaries: by name.
        out: folder of the contact sheets.
        readers: processes that have the sets.
        limit: number of images to read from each set, drawn at random; None reads all.
        seed: seed of that draw, and of the choice of images for the contact sheets.
        sheet_images: labeled images in a contact sheet (three times as many unlabeled ones); 0 draws none.
    """
    drawn = {name: draw_indices(len(dataset), limit, seed, name) for name, dataset in sets.items()}
    for name, indices in drawn.items():
        summaries[name].wanted = len(indices)
        if (found := len(sets[name])) > len(indices):
            print(f"{name}: {len(indices)} of {found} images, drawn with seed={seed}", flush=True)
    for name, indices in drawn.items():
        with Bar(name, len(indices)) as bar:
            for chunk in readers.check(name, indices):
                summaries[name].add(chunk.indices, chunk.findings, chunk.depth, chunk.outside)
                bar.advance(len(chunk.findings))
        if chosen := sheet_indices(indices, summaries[name], sheet_images, seed):
            title = f"{name}: {len(chosen)} of {summaries[name].found} images in {summaries[name].root}"
            readers.draw(name, chosen, sheet_path(out, name), title)
    readers.finish_sheets()


def draw_indices(count: int, limit: int | None, seed: int, name: str) -> Sequence[int]:
    """Returns all indices below `count`, or `limit` of them drawn at random, in ascending order."""
    if limit is None or limit >= count:
        return range(count)
    return sorted(generator(seed, name).choice(count, limit, replace=False).tolist())


def sheet_indices(indices: Sequence[int], summary: SetSummary, wanted: int, seed: int) -> list[int]:
    """Returns some of the indices, drawn at random; leaves out images that have an error."""
    wanted *= 1 if summary.labeled else 3
    candidates = generator(seed + 1, summary.root).choice(
        len(indices), min(len(indices), 8 * wanted), replace=False
    )
    good = [indices[int(i)] for i in candidates if indices[int(i)] not in summary.bad]
    return sorted(good[:wanted])


def generator(seed: int, name: str) -> np.random.Generator:
    """Returns a generator that depends on the name, so that other sets do not change the draw."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def sheet_path(out: Path, name: str) -> Path:
    """Returns the path of the contact sheet of a set."""
    return out / f"contact_{re.sub(r'[^a-zA-Z0-9_-]', '_', name)}.jpg"
