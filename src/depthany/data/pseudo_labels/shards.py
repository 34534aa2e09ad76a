"""A shard of labels: an HDF5 file that is written once, as a whole, and read label by label.

A shard holds, for n labels in the order of their images:

    index [n] image in its set      offset, step [n] of the codes        slot [n] place in codes/<h>x<w>
    size [n 2] of the label         image_size [n 2] of its image, both height, width
    codes/<h>x<w> [m h w]           residuals of the labels of that size, one chunk each; see codec.py

Chunks are compressed before they are handed to HDF5, and read raw, so that threads can code labels in
parallel.
"""

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from depthany.data.pseudo_labels.codec import CodedLabel, decode_label
from depthany.system.packages import reason

SHARD_FORMAT, SHARD_VERSION = "depthany pseudo-labels", 1
_COLUMNS = ("index", "slot", "size", "image_size", "offset", "step")
_CODES = (
    "deflated residuals of 16-bit codes: code = cumsum(cumsum(residual - 128, rows), columns) mod 2**16, "
    "disparity = offset + step * code"
)


@dataclass(frozen=True)
class Label:
    """A label [h w] float32 disparity, and height and width of its image."""

    disparity: NDArray[np.float32]
    image_size: tuple[int, int]


@dataclass(frozen=True)
class NewLabel:
    """A label to be written, of image `index` of its data set; `image_size` is (height, width) of the
    image.
    """

    index: int
    image_size: tuple[int, int]
    coded: CodedLabel


def shard_file(labels: Sequence[NewLabel]) -> memoryview:
    """Returns an HDF5 file in memory. A full disk is then met by a plain write, which fails cleanly."""
    groups: dict[tuple[int, int], list[CodedLabel]] = defaultdict(list)
    slots = []
    for label in labels:
        group = groups[label.coded.height, label.coded.width]
        slots.append(len(group))
        group.append(label.coded)
    columns = {
        "index": np.array([label.index for label in labels], "<i8"),
        "slot": np.array(slots, "<i4"),
        "size": np.array([(x.coded.height, x.coded.width) for x in labels], "<i4").reshape(-1, 2),
        "image_size": np.array([label.image_size for label in labels], "<i4").reshape(-1, 2),
        "offset": np.array([label.coded.offset for label in labels], "<f8"),
        "step": np.array([label.coded.step for label in labels], "<f8"),
    }
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.attrs["format"], file.attrs["version"], file.attrs["codes"] = SHARD_FORMAT, SHARD_VERSION, _CODES
        for name, column in columns.items():
            file.create_dataset(name, data=column)
        for (height, width), members in groups.items():
            codes = file.create_dataset(
                f"codes/{height}x{width}",
                (len(members), height, width),
                "<u2",
                chunks=(1, height, width),
                shuffle=True,
                compression="gzip",
            )
            for k, member in enumerate(members):
                codes.id.write_direct_chunk((k, 0, 0), member.chunk)
    return content.getbuffer()


_REMEDY = "delete this file, and the command that made the labels makes it again"


class Shard:
    """An opened shard.

    Attributes:
        index: [n] indices of the images that have a label, ascending.

    Raises:
        ValueError: the file cannot be read, or is not a shard.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = h5py.File(path, "r", locking=False)  # shards never change; some disks cannot lock
            columns = {name: self._file[name][:] for name in _COLUMNS}
        except (OSError, KeyError, RuntimeError) as error:
            raise ValueError(
                f"{path}: damaged, or not a shard of labels: {reason(error)}; {_REMEDY}"
            ) from None
        self.index: NDArray[np.int64] = columns["index"]
        self._columns = columns

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def label(self, index: int) -> Label | None:
        """Returns the label of image `index` of the data set; None if it has none.

        Raises:
            ValueError: the label is damaged.
        """
        k = int(np.searchsorted(self.index, index))
        if k == len(self.index) or self.index[k] != index:
            return None
        row = {name: column[k] for name, column in self._columns.items()}
        height, width = (int(side) for side in row["size"])
        try:
            codes = self._file[f"codes/{height}x{width}"]
            _, chunk = codes.id.read_direct_chunk((int(row["slot"]), 0, 0))
            coded = CodedLabel(height, width, float(row["offset"]), float(row["step"]), chunk)
            disparity = decode_label(coded)
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            raise ValueError(f"{self.path}: label of image {index}: {reason(error)}; {_REMEDY}") from None
        return Label(disparity, (int(row["image_size"][0]), int(row["image_size"][1])))
