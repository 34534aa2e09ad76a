"""Whether a data set that lies elsewhere now holds the same files, by their number and names."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from depthany.data.samples import LabeledSet, UnlabeledSet

_SAMPLED = 65_536  # largest number of names compared, spread evenly over larger sets


def identity(data_set: LabeledSet | UnlabeledSet) -> str:
    """Returns a hash of the number of images and of their names below the root, in order."""
    if hasattr(data_set, "identity"):
        return str(data_set.identity())
    root, count = getattr(data_set, "root", None), len(data_set)
    digest = hashlib.blake2b(str(count).encode(), digest_size=16)
    for index in np.unique(np.linspace(0, max(count - 1, 0), min(count, _SAMPLED), dtype=np.int64)):
        digest.update(b"\0" + os.fsencode(_below(data_set.name(int(index)), root)))
    return digest.hexdigest()


def _below(name: str, root: Any) -> str:
    """Returns the name without the root, which some sets put before it."""
    return os.path.relpath(name, root) if root is not None and Path(name).is_relative_to(root) else name
