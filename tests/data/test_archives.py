"""Bytes of an image from tars and LMDB, in the processes of a loader too."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from image_sets import contents, write_lmdb, write_tar

from depthany.data.dataset import TrainingSet
from depthany.data.indexed.archives import OpenFiles
from depthany.data.loading.loader import read_batches
from depthany.data.sampler import MixedBatches, ShardOrder
from depthany.data.unlabeled import FolderImages, IndexedImages
from depthany.system.distributed import ALONE
from depthany.training.parallel import shared_count

SIZE = 28


def numbered(folder: Path, count: int) -> list[str]:
    for k in range(count):
        (folder / str(k)).write_bytes(bytes([k]) * 100)
    return [str(folder / str(k)) for k in range(count)]


def test_open_files_stay_within_the_limit(tmp_path: Path) -> None:
    files, paths = OpenFiles(limit=3), numbered(tmp_path, 10)
    before = len(os.listdir("/proc/self/fd"))
    for k in [0, 1, 2, 0, 9, 8, 0, 5, 9]:
        assert files.read(paths[k], 7, 5) == bytes([k]) * 5
    assert len(files) == 3
    assert len(os.listdir("/proc/self/fd")) == before + 3
    files.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_least_recently_read_file_is_closed(tmp_path: Path) -> None:
    files, paths = OpenFiles(limit=2), numbered(tmp_path, 3)
    for k in (0, 1, 0, 2):
        files.read(paths[k], 0, 1)
    for path in paths:
        os.unlink(path)
    assert files.read(paths[0], 0, 1) == b"\0", "open still, so it can be read"
    with pytest.raises(ValueError, match="cannot read the file: No such file"):
        files.read(paths[1], 0, 1)


def test_many_threads_read_the_right_files(tmp_path: Path) -> None:
    files, paths, wrong = OpenFiles(limit=2), numbered(tmp_path, 20), list[int]()

    def read(seed: int) -> None:
        for k in np.random.default_rng(seed).integers(0, 20, 500).tolist():
            if files.read(paths[k], 0, 100) != bytes([k]) * 100:
                wrong.append(k)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_fork_while_the_lock_is_held_can_read(tmp_path: Path) -> None:
    files, (path,) = OpenFiles(), numbered(tmp_path, 1)
    files.read(path, 0, 1)
    with files._lock:
        child = os.fork()
        if child == 0:
            os._exit(0 if files.read(path, 0, 3) == b"\0\0\0" else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert files.read(path, 0, 3) == b"\0\0\0", "what the child closed is open in its parent"


def test_shortened_file_is_named_with_the_reason(tmp_path: Path) -> None:
    files, (path,) = OpenFiles(), numbered(tmp_path, 1)
    with pytest.raises(ValueError, match=rf"{path}: ends at byte 100, within an image of 50 bytes at 80"):
        files.read(path, 80, 50)


def image_files(world) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((world.root / "unlabeled").iterdir())}


@pytest.fixture
def three_kinds(tiny_world, tmp_path: Path) -> dict[str, IndexedImages]:
    """The unlabeled images of the tiny world in a folder, in two tars and in two LMDB environments."""
    files = image_files(tiny_world)
    halves = [dict(list(files.items())[:3]), dict(list(files.items())[3:])]
    for k, half in enumerate(halves):
        write_tar(tmp_path / f"tar/{k}.tar", list(half.items()))
        write_lmdb(tmp_path / f"lmdb/{k}_lmdb", {name.encode(): stored for name, stored in half.items()})
        for name, stored in half.items():
            (tmp_path / f"folder/{k}").mkdir(parents=True, exist_ok=True)
            (tmp_path / f"folder/{k}/{name}").write_bytes(stored)
    return {kind: IndexedImages(str(tmp_path / kind), kind) for kind in ("folder", "tar", "lmdb")}


def test_lmdb_is_read_without_a_lock_file(three_kinds, tiny_world, tmp_path) -> None:
    stored = contents(three_kinds["lmdb"])
    assert {key.split("/")[1]: value for key, value in stored.items()} == image_files(tiny_world)
    assert {key.split("/")[0] for key in stored} == {"0_lmdb", "1_lmdb"}
    assert not list(tmp_path.rglob("lock.mdb"))


def test_folder_tar_and_lmdb_yield_equal_batches(three_kinds, tiny_world, tmp_path: Path) -> None:
    plain = FolderImages(str(tiny_world.root / "unlabeled"))
    wanted = [batch.unlabeled_image for batch in batches(plain, tmp_path, workers=0)]
    for images in three_kinds.values():
        images.stored_image(0)  # opened before the fork
        for workers in (0, 2):
            found = [batch.unlabeled_image for batch in batches(images, tmp_path, workers)]
            assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


def batches(images, tmp_path: Path, workers: int):
    dataset = TrainingSet([], [images], SIZE)
    order = ShardOrder(np.array([3, 3]), window=1, seed=0)
    sampler = MixedBatches(0, len(images), 0, 2, total=18, seed=0, unlabeled_order=order)
    count = shared_count(ALONE, sampler, tmp_path / "unreadable.txt", 1.0)
    return list(read_batches(dataset, sampler, workers, False, count))


def test_lmdb_reads_beyond_a_reopening(tmp_path: Path) -> None:
    values = {b"%03d" % k: b"value %d" % k for k in range(100)}
    for k in range(20):  # more environments than are kept open as well
        write_lmdb(tmp_path / f"set/{k:02d}", values)
    images = IndexedImages(str(tmp_path / "set"), "lmdb")
    assert len(images) == 2000
    for i in [*range(0, 2000, 7), *([5] * 1200)]:
        assert images.stored_image(i) == values[b"%03d" % (i % 100)]


def test_missing_key_is_named(tmp_path: Path, three_kinds) -> None:
    from depthany.data.indexed.archives import read_lmdb

    with pytest.raises(ValueError, match=r"0_lmdb: no key b'nothing': the environment has changed"):
        read_lmdb(str(tmp_path / "lmdb/0_lmdb"), b"nothing")
    with pytest.raises(ValueError, match=r"0_lmdb: cannot read key .*BAD_VALSIZE"):  # an error of lmdb's own
        read_lmdb(str(tmp_path / "lmdb/0_lmdb"), b"")
