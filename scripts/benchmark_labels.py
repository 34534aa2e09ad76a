"""How many bytes a stored pseudo-label takes, and how fast it is written and read: `benchmark.py labels`.

Predictions of a teacher are quantised to 16 bits and compressed without loss, as the store does it and in
other ways; every contestant must return the same codes. Rates are labels per second of CPU time on one core.
Those of HDF5's filters include writing and opening a file of one label in memory.

Measured on an AMD EPYC core that other work shared: 17 squares of 518 x 518 (12 images of the sample, 5
photographs of scikit-image), predicted in float32 by a vitt teacher trained on the sample at 126. Bytes are a
share of raw float32:

                                       bytes   coded/s   read/s
    plane + deflate Z_RLE (the store)  22.7 %      276      275
    plane + zstd 3                     22.8 %      916      509    needs a plugin for the same bytes
    plane + deflate 4                  22.8 %      132      280
    plane + LZF + shuffle              26.5 %      172      282
    plane + bitshuffle + zstd          25.9 %      367      314
    plane + blosc2 zstd 5 bitshuffle   25.6 %      152      333
    deflate 4 (gzip + shuffle)         34.1 %       83      557
    zstd 3 + shuffle                   34.9 %      304      729
    LZF + shuffle                      39.9 %      170      376
    bitshuffle + zstd                  40.4 %      269      441
    16-bit PNG (OpenCV)                37.8 %      136      238

Predictions in bfloat16 (9 of the images) take 24.4 %. With the predictor applied twice float32 takes 20.2 %,
but bfloat16 27.2 %, since it sharpens its steps.
"""

import argparse
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from depthany import load_model
from depthany.data.images import read_image
from depthany.data.pseudo_labels.codec import decode_codes, encode_codes, quantise
from depthany.models.preprocess import Preprocessing

Codes = NDArray[np.uint16]
Contestant = tuple[Callable[[Codes], bytes], Callable[[bytes], Codes]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `benchmark.py labels`."""
    parser.add_argument("--teacher", required=True, help="anything load_model takes")
    parser.add_argument(
        "--images", nargs="+", required=True, help="files; the middle square of each is taken"
    )
    parser.add_argument("--size", type=int, default=518, help="pixels per side (default 518)")
    parser.add_argument("--bf16", action="store_true", help="predict in bfloat16")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds (default 3)")


def run(arguments: argparse.Namespace) -> None:
    """Prints bytes and rates of each contestant."""
    labels = predict(arguments.teacher, arguments.images, arguments.size, arguments.bf16)
    print(f"{len(labels)} labels of {arguments.size} x {arguments.size}: share of float32, coded/s, read/s")
    for name, (encode, decode) in build(arguments.size).items():
        began = time.process_time()
        for _ in range(arguments.rounds):
            chunks = [encode(codes) for codes in labels]
        coded = time.process_time()
        for _ in range(arguments.rounds):
            found = [decode(chunk) for chunk in chunks]
        read, count = time.process_time(), arguments.rounds * len(labels)
        assert all((a == b).all() for a, b in zip(labels, found, strict=True)), name
        share = sum(map(len, chunks)) / sum(4 * codes.size for codes in labels)
        print(
            f"  {name:34s} {share:6.1%} {count / (coded - began):7.0f} {count / (read - coded):7.0f}",
            flush=True,
        )


@torch.inference_mode()
def predict(teacher: str, images: Sequence[str], size: int, bf16: bool) -> list[Codes]:
    """Returns the quantised predictions [size size] of the middle square of every image."""
    model, labels = load_model(teacher), []
    for path in images:
        photo = read_image(Path(path), convert=True)
        side = min(photo.shape[:2])
        top, left = ((extent - side) // 2 for extent in photo.shape[:2])
        square = np.ascontiguousarray(photo[top : top + side, left : left + side])
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            disparity = model(Preprocessing().prepare(square, size)[None]).map[0]
        labels.append(quantise(disparity.float().numpy())[0])
    return labels


def build(size: int) -> dict[str, Contestant]:
    """Returns the store, 16-bit PNG, and filters of HDF5 and hdf5plugin with and without the predictor."""
    found: dict[str, Contestant] = {
        "the store: plane + deflate Z_RLE": (encode_codes, lambda chunk: decode_codes(chunk, size, size)),
        "16-bit PNG": (png, lambda chunk: cv2.imdecode(np.frombuffer(chunk, np.uint8), cv2.IMREAD_UNCHANGED)),
    }
    for name, filters in hdf5_filters().items():
        found[f"plane + {name}"] = (
            lambda codes, filters=filters: hdf5(plane(codes), filters),
            lambda chunk: unplane(from_hdf5(chunk)),
        )
        found[name] = (lambda codes, filters=filters: hdf5(codes, filters), from_hdf5)
    return found


def hdf5_filters() -> dict[str, dict[str, Any]]:
    """Returns arguments of `create_dataset`; those of hdf5plugin only if it is installed."""
    filters: dict[str, dict[str, Any]] = {
        "gzip 4 + shuffle": {"compression": "gzip", "compression_opts": 4, "shuffle": True},
        "LZF + shuffle": {"compression": "lzf", "shuffle": True},
    }
    try:
        import hdf5plugin
    except ImportError:
        print("without hdf5plugin: pip install hdf5plugin")
        return filters
    blosc = hdf5plugin.Blosc2(cname="zstd", clevel=5, filters=hdf5plugin.Blosc2.BITSHUFFLE)
    return filters | {
        "zstd 3 + shuffle": {"shuffle": True, **hdf5plugin.Zstd(clevel=3)},
        "bitshuffle + zstd": dict(hdf5plugin.Bitshuffle(cname="zstd")),
        "bitshuffle + LZ4": dict(hdf5plugin.Bitshuffle(cname="lz4")),
        "blosc2 zstd 5 bitshuffle": dict(blosc),
    }


def hdf5(codes: Codes, filters: dict[str, Any]) -> bytes:
    """Returns an HDF5 file of one chunk."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.create_dataset("codes", data=codes, chunks=codes.shape, **filters)
    return content.getvalue()


def from_hdf5(content: bytes) -> Codes:
    """Returns the codes of such a file."""
    with h5py.File(io.BytesIO(content)) as file:
        return file["codes"][:]


def png(codes: Codes) -> bytes:
    """Returns a PNG as OpenCV writes it by default."""
    return cv2.imencode(".png", codes)[1].tobytes()


def plane(codes: Codes) -> Codes:
    """Returns the residuals of the store's predictor, see `depthany.data.pseudo_labels.codec`."""
    rows = np.diff(codes, axis=1, prepend=np.uint16(0))
    return np.diff(rows, axis=0, prepend=np.uint16(0)) + np.uint16(128)


def unplane(residual: Codes) -> Codes:
    """Returns the codes of such residuals."""
    return np.cumsum(np.cumsum(residual - np.uint16(128), 0, dtype=np.uint16), 1, dtype=np.uint16)
