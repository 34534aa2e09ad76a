"""Saving in the background: what is written is the state as it was, and no failure is lost."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from depthany.models.output import Quantity
from depthany.training.checkpoints.resume import load_latest
from depthany.training.checkpoints.state import (
    Progress,
    TrainingState,
    read_checkpoint,
    write_checkpoint,
)
from depthany.training.checkpoints.writer import CheckpointWriter, HostCopy
from depthany.training.run_dir import checkpoint_dir, remove_half_written
from depthany.training.stages.base import Stage


class Tiny(nn.Module):
    """Two layers in place of a depth model."""

    def __init__(self) -> None:
        super().__init__()
        self.config, self.quantity = {"encoder": "tiny"}, Quantity("disparity")
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Conv2d(4, 2, 3).to(memory_format=torch.channels_last))


def state_at(step: int) -> TrainingState:
    model = Tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TrainingState(model, Stage(), optimizer, scaler, Progress(step))  # type: ignore[arg-type]


class SlowDisk:
    """torch.save waits for `go`; `begun` tells that it was called."""

    def __init__(self) -> None:
        self.begun, self.go, self.save = threading.Event(), threading.Event(), torch.save

    def __call__(self, payload: object, path: Path) -> None:
        self.begun.set()
        assert self.go.wait(60)
        self.save(payload, path)


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    disk = SlowDisk()
    monkeypatch.setattr(torch, "save", disk)
    yield disk
    disk.go.set()


def test_later_changes_are_not_in_checkpoint(tmp_path: Path, slow_disk: SlowDisk) -> None:
    state = state_at(1)
    expected = HostCopy().take(state.payload())
    with CheckpointWriter(tmp_path, 1, "stop", print) as writer:
        writer.save(state)
        assert slow_disk.begun.wait(60)
        state.optimizer.step()
        state.optimizer.param_groups[0]["lr"] = 0.25
        slow_disk.go.set()
    written = read_checkpoint(tmp_path / "step_00000001.pt")
    for name, tensor in expected["model"].items():
        assert torch.equal(written["model"][name], tensor)
        assert not torch.equal(written["model"][name], state.model.state_dict()[name])
    assert written["optimizer"]["param_groups"][0]["lr"] == 0.5
    assert written["optimizer"]["state"][0]["step"] == 1


def test_checkpoint_of_copy_equals_checkpoint_of_state(tmp_path: Path) -> None:
    state = state_at(1)
    with CheckpointWriter(tmp_path / "a", 1, "stop", print) as writer:
        writer.save(state)
    write_checkpoint(tmp_path / "b/step_00000001.pt", state.payload())
    a, b = ((tmp_path / each / "step_00000001.pt").read_bytes() for each in "ab")
    assert a == b


def test_next_save_waits_and_best_shares_copy(tmp_path: Path, slow_disk: SlowDisk) -> None:
    state = state_at(1)
    with CheckpointWriter(tmp_path, 2, "stop", print) as writer:
        writer.save_best(state)
        writer.save(state)  # would not return before the disk goes on, were it another state
        later = threading.Timer(0.2, slow_disk.go.set)
        later.start()
        state.progress.step = 2
        writer.save(state)
        assert slow_disk.go.is_set()
        assert sorted(path.name for path in tmp_path.glob("*.pt"))[:2] == ["best.pt", "step_00000001.pt"]
    assert read_checkpoint(tmp_path / "best.pt")["state"]["step"] == 1


def save_and_fail(writer: CheckpointWriter) -> None:
    with writer:
        writer.save(state_at(1))
        raise KeyError("of the loop")


def test_exception_waits_for_write_under_way(tmp_path: Path, slow_disk: SlowDisk) -> None:
    threading.Timer(0.2, slow_disk.go.set).start()
    with pytest.raises(KeyError, match="of the loop"):
        save_and_fail(CheckpointWriter(tmp_path, 1, "stop", print))
    assert read_checkpoint(tmp_path / "step_00000001.pt")["state"]["step"] == 1


@pytest.fixture
def no_folder(tmp_path: Path) -> Path:
    """A folder that cannot be made: a file has its name."""
    (tmp_path / "file").touch()
    return tmp_path / "file"


def test_stop_raises_failed_write_at_next_save(no_folder: Path) -> None:
    state, writer = state_at(1), CheckpointWriter(no_folder, 1, "stop", print)
    with writer:
        writer.save(state)
        state.progress.step = 2
        with pytest.raises(ValueError, match=r"cannot write .*step_00000001.pt: .*continues from its start"):
            writer.save(state)


def test_stop_raises_failed_last_write_at_exit(no_folder: Path) -> None:
    writer = CheckpointWriter(no_folder, 1, "stop", print)
    writer.save(state_at(1))
    with pytest.raises(ValueError, match="cannot write"):
        writer.__exit__(None, None, None)


def test_failed_write_does_not_hide_exception(no_folder: Path) -> None:
    told: list[str] = []
    with pytest.raises(KeyError, match="of the loop"):
        save_and_fail(CheckpointWriter(no_folder, 1, "stop", told.append))
    assert len(told) == 1 and told[0].startswith(f"warning: cannot write {no_folder}/step_00000001.pt")


def test_continue_reports_failed_write_and_tries_again(
    no_folder: Path,
) -> None:
    told: list[str] = []
    state = state_at(1)
    with CheckpointWriter(no_folder, 1, "continue", told.append) as writer:
        for step in (1, 2):
            state.progress.step = step
            writer.save(state)
        writer.wait()
        assert (writer.failed, writer.written_step) == (2, 0)
        no_folder.unlink()
        state.progress.step = 3
        writer.save(state)
        writer.wait()
        assert (writer.failed, writer.written_step) == (2, 3)
    assert [line.split(": ")[1].split("/")[-1] for line in told] == ["step_00000001.pt", "step_00000002.pt"]


def test_older_and_damaged_newer_checkpoints_are_deleted(tmp_path: Path) -> None:
    (tmp_path / "step_00000009.pt").write_bytes(b"damaged")
    state = state_at(0)
    with CheckpointWriter(tmp_path, 2, "stop", print) as writer:
        for step in (3, 4, 5):
            state.progress.step = step
            writer.save(state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000004.pt", "step_00000005.pt"]
    latest = load_latest(tmp_path)
    assert latest is not None and latest["state"]["step"] == 5


def test_partial_files_of_killed_run_are_deleted(tmp_path: Path) -> None:
    folder = checkpoint_dir(tmp_path)
    (folder / "step_00000008.dcp").mkdir(parents=True)
    for name in (".step_00000008.pt.partial", "step_00000008.dcp/__0_0.distcp", "step_00000004.pt"):
        (folder / name).write_bytes(b"some of it")
    remove_half_written(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["step_00000004.pt"]


def test_host_copy_reuses_memory_and_keeps_layout() -> None:
    state, kept = state_at(1), HostCopy()
    first = kept.take(state.payload())["model"]
    state.optimizer.step()
    second = kept.take(state.payload())["model"]
    for name, tensor in state.model.state_dict().items():
        assert first[name].data_ptr() == second[name].data_ptr() != tensor.data_ptr()
        assert second[name].stride() == tensor.stride()
        assert torch.equal(second[name], tensor)
