"""Room in shared memory: how far loader processes read ahead, and how a run ends that finds none."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from depthany.data.dataset import TrainingSet
from depthany.data.labeled import FolderDepth
from depthany.data.loading import loader
from depthany.data.loading.loader import plan_prefetch, read_batches
from depthany.data.loading.room import PREFETCH, choose_prefetch, is_full
from depthany.data.sampler import Draw, MixedBatches
from depthany.data.unlabeled import FolderImages
from depthany.system.distributed import ALONE, Processes


class TwoHere(Processes):
    """One of two training processes of one machine."""

    def max(self, number: int) -> int:
        return 1 if number == self.local_rank else number


@pytest.mark.parametrize(
    "workers, room, expected",
    [(2, None, PREFETCH), (0, 0, PREFETCH), (2, 1200, 4), (2, 1100, 3), (2, 700, 2), (2, 500, 1)],
)
def test_prefetch_is_lowered_to_the_room(workers: int, room: int | None, expected: int) -> None:
    # batches of 100 bytes, two of them in use, and 90 % of the room to be used
    assert choose_prefetch(100, workers, ALONE, room) == expected


def test_processes_of_a_machine_share_its_room() -> None:
    assert choose_prefetch(100, 2, ALONE, 1200) == 4
    assert choose_prefetch(100, 2, TwoHere(size=2), 1200) == 1


def test_too_little_room_ends_with_the_remedy() -> None:
    with pytest.raises(
        ValueError, match=r"need 400 MB .* batches of 100 MB \(workers=2\), but only 64 MB"
    ) as error:
        choose_prefetch(100_000_000, 2, ALONE, 64_000_000)
    assert "docker run --shm-size=8g" in str(error.value)
    assert "workers=0" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def dataset(tiny_world) -> TrainingSet:
    labeled = [FolderDepth(str(tiny_world.root / "labeled"), depth_scale=1000)]
    return TrainingSet(labeled, [FolderImages(str(tiny_world.root / "unlabeled"))], [28, 42])


def sampler_of(dataset: TrainingSet, size: int = 1) -> MixedBatches:
    return MixedBatches(dataset.labeled_count, dataset.unlabeled_count, 2, 4, total=40, seed=0, size=size)


def test_batch_bytes_are_those_of_its_tensors(dataset: TrainingSet) -> None:
    batch = dataset[[Draw(True, 0, 1), Draw(True, 1, 1), *(Draw(False, i, 1, i, 3) for i in range(3))]]
    tensors = batch.labeled_image, batch.target, batch.mask, batch.unlabeled_image
    assert dataset.batch_bytes(2, 3) == sum(tensor.nbytes for tensor in tensors)


def test_a_lowered_prefetch_is_said(dataset: TrainingSet, monkeypatch: pytest.MonkeyPatch) -> None:
    of_batch = dataset.batch_bytes(2, 4)
    monkeypatch.setattr(loader, "free_room", lambda: 5 * of_batch)
    prefetch, (line,) = plan_prefetch(dataset, sampler_of(dataset), 1, ALONE)
    assert prefetch == 2
    assert "each loader process reads 2 batches ahead instead of 4" in line
    assert "--shm-size" in line
    assert plan_prefetch(dataset, sampler_of(dataset, size=2), 1, ALONE) == (4, []), "half of it is of each"


def no_room(*_: object) -> None:
    raise RuntimeError(
        "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
    )


def full_by_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", no_room)


def full_by_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingSet, "__getitem__", lambda *_: os.kill(os.getpid(), signal.SIGBUS))


@pytest.mark.parametrize("fill", [full_by_error, full_by_signal], ids=lambda fill: fill.__name__)
def test_full_shared_memory_ends_the_run_at_once(
    dataset: TrainingSet, monkeypatch: pytest.MonkeyPatch, fill: Callable[[pytest.MonkeyPatch], None]
) -> None:
    fill(monkeypatch)  # in this process, of which the loader process is a copy
    began = time.monotonic()
    with pytest.raises(ValueError, match="--shm-size") as error:
        list(read_batches(dataset, sampler_of(dataset), 1, False, lambda k, batch: None, 60.0))
    assert time.monotonic() - began < 20
    assert "workers=0" in str(error.value)
    assert "\n" not in str(error.value)


def test_other_faults_are_not_taken_for_full_memory() -> None:
    assert not is_full(RuntimeError("received 0 items of ancdata"))
    assert not is_full(
        RuntimeError("unable to open shared memory object </torch_1>: Too many open files (24)")
    )
    assert not is_full(OSError(28, os.strerror(28), str(Path("labels.npy"))))
