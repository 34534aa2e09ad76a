"""Sets of images that a test writes in their true format, and all that one holds."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from depthany.data.unlabeled import IndexedImages


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, stored in members:
            info = tarfile.TarInfo(name)
            info.size = len(stored)
            archive.addfile(info, io.BytesIO(stored))
    return path


def contents(images: IndexedImages) -> dict[str, bytes]:
    """Every image by its path below the root."""
    root = f"{images.root}/"
    return {images.name(i).removeprefix(root): images.stored_image(i) for i in range(len(images))}


def folder_of(root: Path, names: Sequence[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def write_lmdb(folder: Path, values: dict[bytes, bytes]) -> None:
    lmdb = pytest.importorskip("lmdb")
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=1 << 22) as environment, environment.begin(write=True) as change:
        for key, value in values.items():
            change.put(key, value)
    (folder / "lock.mdb").unlink()
