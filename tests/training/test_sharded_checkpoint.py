"""Checkpoints of split state: what is unpickled, and what an incomplete or damaged one is taken for."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from depthany.models.model import depth_anything
from depthany.training.checkpoints.sharded import (
    Reader,
    begin_optimizer,
    crc32,
    fault_of,
    remove_incomplete,
    tensors_of,
)
from depthany.training.checkpoints.state import TrainingState
from depthany.training.optim import OptimizerSettings, build_optimizer
from depthany.training.stages.base import Stage

pytestmark = [pytest.mark.usefixtures("micro"), pytest.mark.filterwarnings("ignore:torch.distributed is dis")]


def new_state(optimizer: str = "adamw", momentum: float = 0.9) -> TrainingState:
    model, settings = depth_anything("micro"), OptimizerSettings(1e-3, optimizer, momentum=momentum)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TrainingState(model, Stage(), build_optimizer(model, [], settings), scaler)


class Harm:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("harm",)


def test_metadata_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(pickle.UnpicklingError, match="mkdir has no place"):
        Reader(tmp_path).read_metadata()
    assert not (tmp_path / "harm").exists()


def test_metadata_of_another_python_is_read(tmp_path: Path) -> None:
    metadata = pickle.dumps(Metadata({}, storage_meta=StorageMeta(Path("folder"))), protocol=2)
    for name in (b"cpathlib\n", b"cpathlib._local\n"):  # the latter from 3.13
        stored = metadata.replace(b"cpathlib._local\n", b"cpathlib\n").replace(b"cpathlib\n", name)
        (tmp_path / ".metadata").write_bytes(stored)
        assert Reader(tmp_path).read_metadata().storage_meta.checkpoint_id == Path("folder")


def test_reader_reads_what_torch_writes(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 2), "b": torch.arange(5), "c": torch.ones(2, dtype=torch.bfloat16)}
    dcp.save(dict(tensors), checkpoint_id=tmp_path, no_dist=True)
    found = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    dcp.load(found, storage_reader=Reader(tmp_path), no_dist=True)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_begin_optimizer_moves_no_parameter() -> None:
    state = new_state()
    before = [parameter.detach().clone() for parameter in state.model.parameters()]
    begin_optimizer(state.optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, state.model.parameters()))
    assert len(state.optimizer.state) == len(before)
    assert all(not moments["exp_avg"].any() for moments in state.optimizer.state.values())
    assert {group["lr"] for group in state.optimizer.param_groups} == {1e-3}
    assert all(parameter.grad is None for parameter in state.model.parameters())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_state_of_sgd_is_restored(momentum: float) -> None:
    state, other = new_state("sgd", momentum), new_state("sgd", momentum)
    for parameter in state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    buffers = [name for name in tensors_of(state.payload()) if name.endswith("momentum_buffer")]
    assert len(buffers) == (len(list(state.model.parameters())) if momentum else 0)
    other.restore(state.payload())
    for mine, theirs in zip(other.optimizer.state.values(), state.optimizer.state.values()):
        assert momentum == 0 or torch.equal(mine["momentum_buffer"], theirs["momentum_buffer"])


def write_notes(folder: Path, processes: int) -> None:
    """A checkpoint of so many processes, each with one file."""
    folder.mkdir()
    for rank in range(processes):
        path = folder / f"__{rank}_0.distcp"
        path.write_bytes(bytes([rank]) * 100)
        note = {"processes": processes, "files": {path.name: [100, crc32(path)]}, "plain": {}}
        (folder / f"process_{rank}.json").write_text(json.dumps(note))


def test_checkpoint_is_whole_with_all_notes_and_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "step_00000003.dcp"
    write_notes(folder, 3)
    assert fault_of(folder) == ""
    (folder / "__2_0.distcp").write_bytes(bytes([2]) * 99 + b"x")
    assert [bool(fault_of(folder, rank, 3)) for rank in range(3)] == [False, False, True]  # each its share
    assert fault_of(folder) == "__2_0.distcp: its checksum does not match its bytes"
    (folder / "process_1.json").unlink()
    assert "it is not complete" in fault_of(folder)


def test_half_written_checkpoints_are_deleted(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write_notes(tmp_path / f"step_0000000{step}.dcp", 2)
    (tmp_path / "step_00000002.dcp/process_0.json").unlink()
    (tmp_path / "step_00000003.dcp/process_1.json").unlink()
    remove_incomplete(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001.dcp"]
