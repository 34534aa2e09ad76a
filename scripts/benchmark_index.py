"""What an index of 62 million images costs: `python scripts/benchmark_index.py`.

It has two parts. The first is a synthetic index without images: time to open it, resident memory before and
after, and after random look-ups in this process, in a forked and in a spawned one; for comparison the same
look-ups through a mapping of the file. The second is real images, small JPEGs in tars and in folders: build,
kill and resume, random reads. All files go into a temporary folder that is deleted at the end.
"""

import argparse
import io
import mmap
import multiprocessing
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from depthany.data.indexed.index_file import ENTRY, Index, ShardRow, write_index
from depthany.data.sampler import ShardOrder, shuffled
from depthany.data.unlabeled import IndexedImages

BUILD = "import sys; from depthany.data.unlabeled import IndexedImages; IndexedImages(*sys.argv[1:])"
KILLED_AT = (0.5, 0.6, 0.7, 0.8)  # shares of the time that the first build took


def main() -> None:
    """Parses the command line and runs both parts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--entries", type=int, default=62_000_000, help="synthetic entries (default 62M)")
    parser.add_argument("--shards", type=int, default=6_200, help="synthetic shards (default 6200)")
    parser.add_argument("--images", type=int, default=100_000, help="real images of each kind (default 100k)")
    parser.add_argument("--lookups", type=int, default=10_000, help="random look-ups (default 10k)")
    parser.add_argument("--folder", help="where the temporary folder is made (default: the system's)")
    arguments = parser.parse_args()
    print(f"{platform.platform()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        run_synthetic(Path(folder), arguments.entries, arguments.shards, arguments.lookups)
        run_order(arguments.entries, arguments.shards)
        for kind in ("tar", "folder"):
            run_real(Path(folder), kind, arguments.images, arguments.lookups)


def run_synthetic(folder: Path, entries: int, shards: int, lookups: int) -> None:
    """Prints what opening and using a large index costs."""
    root, path = folder / "synthetic", folder / "synthetic.tar.index"
    root.mkdir()
    began = time.perf_counter()
    write_synthetic(root, path, entries, shards)
    size_gb, seconds = path.stat().st_size / 1e9, time.perf_counter() - began
    print(
        f"\nsynthetic: {entries:,} entries in {shards:,} tars, {size_gb:.2f} GB, written in {seconds:.0f} s"
    )
    before, began = resident_mb(), time.perf_counter()
    index = Index(path)
    opened = 1000 * (time.perf_counter() - began)
    print(f"  open: {opened:.1f} ms; resident {before:.0f} MB before, {resident_mb():.0f} MB after")
    began = time.perf_counter()
    assert len(IndexedImages(str(root), "tar", suffixes=[".jpg"])) == entries
    opened = 1000 * (time.perf_counter() - began)
    print(f"  open as a set, every tar compared: {opened:.0f} ms; {resident_mb():.0f} MB")
    report("look-ups in this process", index, lookups)
    in_a_process("fork", report, "look-ups in a forked process", index, lookups)
    in_a_process("spawn", report, "look-ups in a spawned process", index, lookups)
    in_a_process("fork", report_mapped, path, lookups)


def write_synthetic(root: Path, path: Path, entries: int, shards: int) -> None:
    """Writes the index of tars of equal size with names of 16 bytes such as sa_000000000.jpg, and sparse tars
    that can be compared with it.
    """
    counts = np.diff(np.linspace(0, entries, shards + 1).astype(np.int64)).tolist()
    rows = [ShardRow(b"sa_%06d.tar" % k, n, 16 * n, 10**10, 0, -1) for k, n in enumerate(counts)]
    for row in rows:
        tar = root / row.name.decode()
        tar.touch()
        os.truncate(tar, row.size)
        os.utime(tar, ns=(0, row.mtime_ns))

    def parts() -> Iterator[NDArray[np.void]]:
        for count in counts:
            part = np.zeros(count, ENTRY)
            part["offset"], part["size"] = 512 + 900_000 * np.arange(count), 899_000
            part["name"] = 16 * np.arange(count)
            yield part

    names = (b"".join(b"sa_%09d.jpg" % i for i in range(n)) for n in counts)
    write_index(path, "tar", [".jpg"], rows, parts(), names)


def report(what: str, index: Index, lookups: int) -> None:
    """Prints time and memory of looking up entries and names at random."""
    before, wanted = resident_mb(), places(len(index), lookups)
    began = time.perf_counter()
    for i in wanted:
        index.entry(i)
        index.entry_name(i)
    each_us = (time.perf_counter() - began) / lookups * 1e6
    print(
        f"  {lookups:,} {what}: {each_us:.1f} us each; resident {before:.0f} -> {resident_mb():.0f} MB",
        flush=True,
    )


def report_mapped(path: Path, lookups: int) -> None:
    """Prints the memory of the same look-ups through a mapping, which the index does not use."""
    for advice in ("none", "MADV_RANDOM"):
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if advice != "none":
            mapped.madvise(getattr(mmap, advice))
        before = resident_mb()
        for i in places(len(mapped), 2 * lookups):
            mapped[i]
        print(f"  mapped instead ({advice}): resident {before:.0f} -> {resident_mb():.0f} MB", flush=True)
        mapped.close()


def run_order(entries: int, shards: int) -> None:
    """Prints what the order of a micro-batch of 128 costs, at random positions."""
    print(f"\norder of {entries:,} images, microseconds a position, in micro-batches of 128")
    sizes = np.diff(np.linspace(0, entries, shards + 1).astype(np.int64))
    by_shards = ShardOrder(sizes, 64, seed=0)
    orders: dict[str, Callable[[NDArray[np.int64]], NDArray[np.int64]]] = {
        "shuffle": lambda positions: shuffled(positions, entries, seed=0),
        "shards": by_shards,
    }
    for name, order in orders.items():
        order(np.arange(128))
        began = time.perf_counter()
        for k in range(1000):
            order(np.arange(128) + 401 * 128 * k)
        print(f"  {name}: {(time.perf_counter() - began) / 128_000 * 1e6:.2f}")


def run_real(folder: Path, kind: str, images: int, reads: int) -> None:
    """Prints how fast an index of real files is built and resumed, and images are read at random."""
    root = folder / kind
    write_images(root, kind, images)
    built = folder / f"{kind}.{kind}.index"
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", BUILD, str(root), kind], check=True, capture_output=True)
    seconds, whole = time.perf_counter() - began, built.read_bytes()
    print(f"\n{kind}: {images:,} images; index built in {seconds:.1f} s with the start of Python")
    built.unlink()
    kills = sum(kill_after(root, kind, seconds * share) for share in KILLED_AT)
    subprocess.run([sys.executable, "-c", BUILD, str(root), kind], check=True, capture_output=True)
    same = "the same" if built.read_bytes() == whole else "OTHER"
    print(f"  killed {kills} times in {len(KILLED_AT)} starts and resumed: {same} bytes")
    began = time.perf_counter()
    found = IndexedImages(str(root), kind)
    print(f"  opened and compared with the data in {1000 * (time.perf_counter() - began):.0f} ms")
    began = time.perf_counter()
    stored = [found.stored_image(i)[:3] for i in places(len(found), reads)]
    print(f"  random reads (cached by the system): {reads / (time.perf_counter() - began):,.0f} a second")
    assert len(found) == images
    assert set(stored) == {b"\xff\xd8\xff"}, "each begins as a JPEG"


def kill_after(root: Path, kind: str, seconds: float) -> bool:
    """Builds, and kills the parent process after `seconds`; returns whether it was still running."""
    build = subprocess.Popen([sys.executable, "-c", BUILD, str(root), kind], stderr=subprocess.DEVNULL)
    try:
        build.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        build.kill()
        build.wait()
        time.sleep(0.7)  # its processes end by themselves
        return True
    return False


def write_images(root: Path, kind: str, images: int) -> None:
    """Writes a thousand different small JPEGs again and again, into tars of 1000 or folders of 100."""
    draw = np.random.default_rng(0)
    sorts = [_jpeg(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(1000)]
    for k in range(-(-images // 1000)):
        here = range(1000 * k, min(images, 1000 * (k + 1)))
        if kind == "tar":
            root.mkdir(exist_ok=True)
            with tarfile.open(root / f"{k:06d}.tar", "w") as archive:
                for i in here:
                    info = tarfile.TarInfo(f"{i:09d}.jpg")
                    info.size = len(sorts[i % 1000])
                    archive.addfile(info, io.BytesIO(sorts[i % 1000]))
        else:
            for i in here:
                path = root / f"{k:03d}/{i // 100 % 10}/{i:09d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(sorts[i % 1000])


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, "JPEG")
    return stored.getvalue()


def places(count: int, n: int) -> list[int]:
    """Returns `n` random indices below `count`."""
    return np.random.default_rng(os.getpid()).integers(0, count, n).tolist()


def in_a_process(method: str, target: Callable[..., None], *arguments: object) -> None:
    """Runs a function in its own process and waits for it."""
    process = multiprocessing.get_context(method).Process(target=target, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0


def resident_mb() -> float:
    """Returns the resident memory of this process in MB, with mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


if __name__ == "__main__":
    main()
