"""Checkpoints of a run whose state is sharded among ranks (FSDP2), through torch.distributed.checkpoint.

    step_NNNNNNNN.dcp/__R_0.distcp, .metadata    tensors as rank R had them, and where each shard lies
    step_NNNNNNNN.dcp/process_R.json             written last: size and CRC-32 of what rank R wrote, and the
                                                 plain values of the state; whole once every rank has one

Any number of ranks can load one, a single one too.
"""

import json
import pickle
import shutil
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from depthany.system.files import why, write_atomically
from depthany.training.checkpoints.state import SHARDED_SUFFIX, TrainingState, require_averages

_METADATA = ".metadata"


def tensors_of(payload: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns all tensors of a payload by names such as model/encoder.cls_token and optimizer/3/exp_avg."""
    found = {
        f"{part}/{name}": tensor
        for part in ("model", "ema", "stage")
        for name, tensor in payload.get(part, {}).items()
    }
    for index, state in payload["optimizer"]["state"].items():
        found |= {f"optimizer/{index}/{key}": value for key, value in state.items() if torch.is_tensor(value)}
    return found


def local_tensors(payload: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns this rank's shards of all tensors."""
    return {
        name: tensor.to_local() if isinstance(tensor, DTensor) else tensor
        for name, tensor in tensors_of(payload).items()
    }


def on_mesh(payload: Mapping[str, Any], local: Mapping[str, Tensor], mesh: DeviceMesh) -> dict[str, Tensor]:
    """Rebuilds each local shard as a DTensor on the CPU.

    Args:
        payload: tells the placements and full shapes.
        local: copies in CPU memory of what `local_tensors` returns.
        mesh: mesh of the CPUs of all ranks.
    """
    return {
        name: DTensor.from_local(
            local[name], mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
        )
        if isinstance(tensor, DTensor)
        else local[name]
        for name, tensor in tensors_of(payload).items()
    }


def write_sharded(
    folder: Path, tensors: dict[str, Tensor], plain: Mapping[str, Any], group: dist.ProcessGroup
) -> None:
    """Writes this rank's part; all ranks of the group call it, and it returns when all of it is durable.

    Args:
        tensors: on the CPU, sharded or whole.
        plain: values for JSON, the same on all ranks.

    Raises:
        ValueError: a rank could not write its part; the same on all of them.
    """
    rank, fault = dist.get_rank(group), ""
    try:
        writer = dcp.FileSystemWriter(folder, overwrite=True)
        dcp.save(tensors, storage_writer=writer, process_group=group)
        own = [*folder.glob(f"__{rank}_*.distcp"), *([folder / _METADATA] if rank == 0 else [])]
        files = {path.name: [path.stat().st_size, crc32(path)] for path in own}
        note = json.dumps({"processes": dist.get_world_size(group), "files": files, "plain": dict(plain)})
        write_atomically(folder / f"process_{rank}.json", lambda partial: partial.write_text(note))
    except Exception as error:  # dcp's own wraps those of all ranks
        fault = _reason(error)
    faults: list[str] = [""] * dist.get_world_size(group)
    dist.all_gather_object(faults, fault, group=group)
    if any(faults):
        raise ValueError(
            f"cannot write {folder}: {next(filter(None, faults))}; files written before are complete"
        )


def _reason(error: BaseException) -> str:
    failures = getattr(error, "failures", None)  # of a CheckpointException: by rank, with the traceback
    if failures:
        error = next(iter(failures.values()))[0]
    return why(error) if isinstance(error, Exception) else str(error)


def fault_of(folder: Path, rank: int = 0, size: int = 1) -> str:
    """Returns what is wrong with a checkpoint, "" if nothing is; each rank checks its share of the files."""
    try:
        notes = [json.loads((folder / "process_0.json").read_text())]
        for other in range(1, notes[0]["processes"]):
            notes.append(json.loads((folder / f"process_{other}.json").read_text()))
        files = sorted((name, *about) for note in notes for name, about in note["files"].items())
        for name, length, checksum in files[rank::size]:
            if (folder / name).stat().st_size != length or crc32(folder / name) != checksum:
                return f"{name}: its checksum does not match its bytes"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"it is not complete: {why(error)}"
    return ""


def load_sharded(folder: Path, state: TrainingState) -> None:
    """Loads a checkpoint that `fault_of` found whole, each rank its shards; all ranks call it together.

    Raises:
        ValueError: the run averages its weights, and the checkpoint has no averages.
    """
    if state.average is not None:
        saved = Reader(folder).read_metadata().state_dict_metadata
        require_averages(any(name.startswith("ema/") for name in saved))
    begin_optimizer(state.optimizer)
    plain = json.loads((folder / "process_0.json").read_text())["plain"]
    tensors = tensors_of(state.payload())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # so it is, on one rank
        dcp.load(tensors, storage_reader=Reader(folder), no_dist=not dist.is_initialized())  # in place
    state.restore_scaler(plain["scaler"])
    state.progress.restore(plain["state"])


def begin_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Creates the state that the optimizer's first step would create; parameters stay as they are."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates):
        group["lr"] = rate


def plain_of(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of a payload that is neither a tensor nor known from the configuration."""
    return {"scaler": payload["scaler"], "state": payload["state"]}


def incomplete(folder: Path) -> Iterator[Path]:
    """Yields the checkpoints that a killed run has left half written."""
    for path in folder.glob(f"step_*{SHARDED_SUFFIX}"):
        try:
            count = json.loads((path / "process_0.json").read_text())["processes"]
        except (OSError, ValueError, KeyError):
            yield path
            continue
        if not all((path / f"process_{rank}.json").exists() for rank in range(count)):
            yield path


def remove_incomplete(folder: Path) -> None:
    """Deletes the checkpoints that a killed run has left half written; no rank may be writing."""
    for path in list(incomplete(folder)):
        shutil.rmtree(path)


class Reader(dcp.FileSystemReader):
    """Reads a folder that may be hostile: DCP's own reader unpickles whatever `.metadata` holds."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Returns where each shard lies."""
        with open(Path(self.path) / _METADATA, "rb") as file:
            metadata = _PlacesOnly(file).load()
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _PlacesOnly(pickle.Unpickler):
    """Unpickles classes of DCP's own metadata and nothing that runs code."""

    _MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
    _NAMES = (
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        ("torch.distributed.tensor._dtensor_spec", "TensorMeta"),
        ("collections", "OrderedDict"),
        ("pathlib", "PosixPath"),
        ("pathlib", "WindowsPath"),
    )

    def find_class(self, module: str, name: str) -> Any:
        if module == "pathlib._local":  # the name of pathlib in Python 3.13
            module = "pathlib"
        found = super().find_class(module, name) if self._allows(module, name) else None
        if found is None:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint's {_METADATA}")
        return found

    def _allows(self, module: str, name: str) -> bool:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        return module in self._MODULES or (module, name) in self._NAMES or is_dtype


def crc32(path: Path) -> int:
    """Returns the CRC-32 of a file's bytes."""
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            checksum = zlib.crc32(block, checksum)
    return checksum
