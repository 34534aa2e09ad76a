"""Checkpoints of split state: what is unpickled, and what an incomplete or damaged one is taken for."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from depthany.models.model import depth_anything
from depthany.training.checkpoints.sharded import Reader, begin_optimizer, crc32, fault_of, remove_incomplete
from depthany.training.checkpoints.state import Parts
from depthany.training.optim import build_optimizer

pytestmark = [pytest.mark.usefixtures("micro"), pytest.mark.filterwarnings("ignore:torch.distributed is dis")]


def new_parts() -> Parts:
    model = depth_anything("micro")
    optimizer = build_optimizer(model, [], 1e-3, 10, 0.01, (0.9, 0.999))
    return Parts(model, nn.Identity(), optimizer, torch.amp.GradScaler("cpu", enabled=False))


class Harm:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("harm",)


def test_metadata_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(pickle.UnpicklingError, match="mkdir has no place"):
        Reader(tmp_path).read_metadata()
    assert not (tmp_path / "harm").exists()


def test_what_torch_writes_is_read_by_the_careful_reader(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 2), "b": torch.arange(5), "c": torch.ones(2, dtype=torch.bfloat16)}
    dcp.save(dict(tensors), checkpoint_id=tmp_path, no_dist=True)
    found = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    dcp.load(found, storage_reader=Reader(tmp_path), no_dist=True)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_an_optimizer_gets_its_state_without_a_step_of_any_parameter() -> None:
    parts = new_parts()
    before = [parameter.detach().clone() for parameter in parts.model.parameters()]
    begin_optimizer(parts.optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, parts.model.parameters()))
    assert len(parts.optimizer.state) == len(before)
    assert all(not state["exp_avg"].any() for state in parts.optimizer.state.values())
    assert [group["lr"] for group in parts.optimizer.param_groups] == [1e-3, 1e-3]
    assert all(parameter.grad is None for parameter in parts.model.parameters())


def write_notes(folder: Path, processes: int) -> None:
    """A checkpoint of so many processes, each with one file."""
    folder.mkdir()
    for rank in range(processes):
        path = folder / f"__{rank}_0.distcp"
        path.write_bytes(bytes([rank]) * 100)
        note = {"processes": processes, "files": {path.name: [100, crc32(path)]}, "plain": {}}
        (folder / f"process_{rank}.json").write_text(json.dumps(note))


def test_a_checkpoint_is_whole_once_every_process_has_said_so_and_every_byte_is_right(tmp_path: Path) -> None:
    folder = tmp_path / "step_00000003.dcp"
    write_notes(folder, 3)
    assert fault_of(folder) == ""
    (folder / "__2_0.distcp").write_bytes(bytes([2]) * 99 + b"x")
    assert [bool(fault_of(folder, rank, 3)) for rank in range(3)] == [False, False, True]  # each its share
    assert fault_of(folder) == "__2_0.distcp: its checksum is not that of its bytes"
    (folder / "process_1.json").unlink()
    assert "it is not complete" in fault_of(folder)


def test_half_written_checkpoints_are_deleted_and_whole_ones_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write_notes(tmp_path / f"step_0000000{step}.dcp", 2)
    (tmp_path / "step_00000002.dcp/process_0.json").unlink()
    (tmp_path / "step_00000003.dcp/process_1.json").unlink()
    remove_incomplete(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001.dcp"]
