"""Tiny files in the true formats of the labeled sets."""

from pathlib import Path

import h5py
import numpy as np
import OpenEXR
from PIL import Image

from depthany.data.labeled import PairedDepth


def image(path: Path, height: int = 2, width: int = 3, level: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (level, level, level)).save(path)


def png(path: Path, stored: object, dtype: type = np.uint16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(stored, dtype)).save(path)


def npy(path: Path, stored: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.asarray(stored, np.float32))


def pfm(path: Path, rows: object) -> None:
    """Little endian, the last row first."""
    stored = np.asarray(rows, "<f4")
    path.parent.mkdir(parents=True, exist_ok=True)
    header = f"Pf\n{stored.shape[1]} {stored.shape[0]}\n-1.000000\n".encode()
    path.write_bytes(header + stored[::-1].tobytes())


def exr(path: Path, rows: object) -> None:
    """One channel G, as IRS has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"G": np.asarray(rows, np.float32)}).write(str(path))


def hdf5(path: Path, key: str, rows: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file[key] = np.asarray(rows, np.float32)


def disparity(dataset: PairedDepth, index: int = 0) -> list[list[float | None]]:
    """What `labels` gives, None where the mask is False."""
    labels = dataset.labels(index)
    return [
        [round(float(value), 6) if known else None for value, known in zip(*row)]
        for row in zip(labels.disparity, labels.mask)
    ]
