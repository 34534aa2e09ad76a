"""Saving in the background: what is written is the state as it was, and no failure is lost."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from depthany.models.output import Quantity
from depthany.training.checkpoints.resume import load_latest
from depthany.training.checkpoints.state import Parts, TrainState, read_checkpoint, write_checkpoint
from depthany.training.checkpoints.writer import CheckpointWriter, HostCopy
from depthany.training.run_dir import checkpoint_dir, remove_half_written


class Tiny(nn.Module):
    """Two layers in place of a depth model."""

    def __init__(self) -> None:
        super().__init__()
        self.config, self.quantity = {"encoder": "tiny"}, Quantity("disparity")
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Conv2d(4, 2, 3).to(memory_format=torch.channels_last))


def parts_at(step: int) -> Parts:
    model = Tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return Parts(model, nn.Identity(), optimizer, scaler, TrainState(step))  # type: ignore[arg-type]


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


def test_what_changes_while_a_checkpoint_is_written_is_not_in_it(tmp_path: Path, slow_disk: SlowDisk) -> None:
    parts = parts_at(1)
    expected = HostCopy().take(parts.payload())
    with CheckpointWriter(tmp_path, 1, "stop", print) as writer:
        writer.save(parts)
        assert slow_disk.begun.wait(60)
        parts.optimizer.step()
        parts.optimizer.param_groups[0]["lr"] = 0.25
        slow_disk.go.set()
    written = read_checkpoint(tmp_path / "step_00000001.pt")
    for name, tensor in expected["model"].items():
        assert torch.equal(written["model"][name], tensor)
        assert not torch.equal(written["model"][name], parts.model.state_dict()[name])
    assert written["optimizer"]["param_groups"][0]["lr"] == 0.5
    assert written["optimizer"]["state"][0]["step"] == 1


def test_a_checkpoint_written_from_the_copy_is_the_file_that_the_state_itself_gives(tmp_path: Path) -> None:
    parts = parts_at(1)
    with CheckpointWriter(tmp_path / "a", 1, "stop", print) as writer:
        writer.save(parts)
    write_checkpoint(tmp_path / "b/step_00000001.pt", parts.payload())
    a, b = ((tmp_path / each / "step_00000001.pt").read_bytes() for each in "ab")
    assert a == b


def test_the_next_state_waits_for_the_last_but_the_best_of_the_same_step_shares_its_copy(
    tmp_path: Path, slow_disk: SlowDisk
) -> None:
    parts = parts_at(1)
    with CheckpointWriter(tmp_path, 2, "stop", print) as writer:
        writer.save_best(parts)
        writer.save(parts)  # would not return before the disk goes on, were it another state
        later = threading.Timer(0.2, slow_disk.go.set)
        later.start()
        parts.state.step = 2
        writer.save(parts)
        assert slow_disk.go.is_set()
        assert sorted(path.name for path in tmp_path.glob("*.pt"))[:2] == ["best.pt", "step_00000001.pt"]
    assert read_checkpoint(tmp_path / "best.pt")["state"]["step"] == 1


def save_and_fail(writer: CheckpointWriter) -> None:
    with writer:
        writer.save(parts_at(1))
        raise KeyError("of the loop")


def test_an_exception_in_the_loop_goes_on_after_the_write_under_way_is_done(
    tmp_path: Path, slow_disk: SlowDisk
) -> None:
    threading.Timer(0.2, slow_disk.go.set).start()
    with pytest.raises(KeyError, match="of the loop"):
        save_and_fail(CheckpointWriter(tmp_path, 1, "stop", print))
    assert read_checkpoint(tmp_path / "step_00000001.pt")["state"]["step"] == 1


@pytest.fixture
def no_folder(tmp_path: Path) -> Path:
    """A folder that cannot be made: a file has its name."""
    (tmp_path / "file").touch()
    return tmp_path / "file"


def test_told_to_stop_a_failed_write_raises_at_the_next_save(no_folder: Path) -> None:
    parts, writer = parts_at(1), CheckpointWriter(no_folder, 1, "stop", print)
    with writer:
        writer.save(parts)
        parts.state.step = 2
        with pytest.raises(ValueError, match=r"cannot write .*step_00000001.pt: .*goes on from its start"):
            writer.save(parts)


def test_told_to_stop_a_failed_last_write_raises_at_the_end_of_the_block(no_folder: Path) -> None:
    writer = CheckpointWriter(no_folder, 1, "stop", print)
    writer.save(parts_at(1))
    with pytest.raises(ValueError, match="cannot write"):
        writer.__exit__(None, None, None)


def test_an_exception_of_the_loop_is_not_hidden_by_a_failed_write_which_is_told(no_folder: Path) -> None:
    told: list[str] = []
    with pytest.raises(KeyError, match="of the loop"):
        save_and_fail(CheckpointWriter(no_folder, 1, "stop", told.append))
    assert len(told) == 1 and told[0].startswith(f"warning: cannot write {no_folder}/step_00000001.pt")


def test_told_to_continue_each_failed_write_is_told_and_counted_and_the_next_one_is_tried(
    no_folder: Path,
) -> None:
    told: list[str] = []
    parts = parts_at(1)
    with CheckpointWriter(no_folder, 1, "continue", told.append) as writer:
        for step in (1, 2):
            parts.state.step = step
            writer.save(parts)
        writer.wait()
        assert (writer.failed, writer.written_step) == (2, 0)
        no_folder.unlink()
        parts.state.step = 3
        writer.save(parts)
        writer.wait()
        assert (writer.failed, writer.written_step) == (2, 3)
    assert [line.split(": ")[1].split("/")[-1] for line in told] == ["step_00000001.pt", "step_00000002.pt"]


def test_older_checkpoints_go_and_so_does_a_damaged_newer_one_which_must_not_count(tmp_path: Path) -> None:
    (tmp_path / "step_00000009.pt").write_bytes(b"damaged")
    parts = parts_at(0)
    with CheckpointWriter(tmp_path, 2, "stop", print) as writer:
        for step in (3, 4, 5):
            parts.state.step = step
            writer.save(parts)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000004.pt", "step_00000005.pt"]
    latest = load_latest(tmp_path)
    assert latest is not None and latest["state"]["step"] == 5


def test_what_a_killed_run_was_writing_is_deleted_before_the_next_goes_on(tmp_path: Path) -> None:
    folder = checkpoint_dir(tmp_path)
    (folder / "step_00000008.dcp").mkdir(parents=True)
    for name in (".step_00000008.pt.partial", "step_00000008.dcp/__0_0.distcp", "step_00000004.pt"):
        (folder / name).write_bytes(b"some of it")
    remove_half_written(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["step_00000004.pt"]


def test_the_memory_of_the_copy_is_used_again_and_keeps_the_layout_in_memory() -> None:
    parts, kept = parts_at(1), HostCopy()
    first = kept.take(parts.payload())["model"]
    parts.optimizer.step()
    second = kept.take(parts.payload())["model"]
    for name, tensor in parts.model.state_dict().items():
        assert first[name].data_ptr() == second[name].data_ptr() != tensor.data_ptr()
        assert second[name].stride() == tensor.stride()
        assert torch.equal(second[name], tensor)
